"""The HTTP interface: every form of a request, every error, and images that mean harm."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest
from fastapi.testclient import TestClient

from launcher.serve.app import create_app
from launcher.serve.batcher import BatchOptions
from launcher.serve.classify import ClassifyInterface
from launcher.serve.options import Limits, ServeOptions
from tests.launcher.serve.known import SIDE, KnownModel, image_of

LIMITS = Limits(body_bytes=200_000, images=4, pixels=100_000)


@pytest.fixture
def client() -> Iterator[TestClient]:
    options = ServeOptions(limits=LIMITS, batches=BatchOptions(max_wait_s=0.0))
    with TestClient(
        create_app(ClassifyInterface(KnownModel()), options), raise_server_exceptions=False
    ) as client:
        yield client


def encoded(*images: bytes) -> dict[str, list[str]]:
    return {"images": [base64.b64encode(image).decode() for image in images]}


def classes_of(response) -> list[int]:  # type: ignore[no-untyped-def]
    assert response.status_code == 200, response.text
    return [result["top"][0]["index"] for result in response.json()["results"]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_every_form_of_a_request(client: TestClient, kind: str) -> None:
    images = [image_of(index, kind, side=64) for index in (3, 200, 77)]
    raw = client.post("/v1/classify", content=images[0], headers={"content-type": f"image/{kind.lower()}"})
    assert classes_of(raw) == [3]
    assert classes_of(client.post("/v1/classify", json=encoded(*images))) == [3, 200, 77]
    files = [("file", (f"{number}.img", image)) for number, image in enumerate(images)]
    assert classes_of(client.post("/v1/classify", files=files)) == [3, 200, 77]
    url = f"data:image/x;base64,{base64.b64encode(images[1]).decode()}"
    assert classes_of(client.post("/v1/classify", json={"images": [url]})) == [200]


def test_an_answer(client: TestClient) -> None:
    response = client.post("/v1/classify?top=2&experts=true&view=true", json=encoded(image_of(5)))
    [result] = response.json()["results"]
    e = np.exp(20.0)
    assert result["top"][0] == {
        "index": 5,
        "name": "colour 5",
        "probability": pytest.approx(e / (e + 255), rel=1e-6),
    }
    assert result["top"][1]["index"] == 0  # of equal ones the first
    assert len(result["top"]) == 2
    assert result["experts"] == [
        {"layer": "layers.0.blocks.1", "num_experts": 4, "height": 2, "width": 3, "experts": [[1]] * 6}
    ]
    seen = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(result["view"]))))
    assert np.array_equal(seen.transpose(2, 0, 1), KnownModel().pixels(image_of(5)))
    [features] = client.post("/v1/embed", json=encoded(image_of(5))).json()["results"]
    assert features["features"] == pytest.approx([8, 88, 0])


def gray_png(width: int, height: int) -> bytes:
    """A PNG of so many pixels by its header, with no pixels inside."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


HOSTILE = {
    "empty": b"",
    "text": b"no image",
    "html": b"<html><body>404</body></html>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>',
    "pdf": b"%PDF-1.7\n",
    "truncated png": image_of(1)[:60],
    "truncated jpeg": image_of(1, "JPEG", 64)[:300],
    "bomb": gray_png(30_000, 30_000),
    "wide bomb": gray_png(2**31 - 1, 1),
    "zeros": bytes(10_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_image_is_a_4xx_that_names_it(client: TestClient, name: str) -> None:
    for response in (
        client.post("/v1/classify", content=HOSTILE[name], headers={"content-type": "image/png"}),
        client.post("/v1/embed", json=encoded(HOSTILE[name])),
    ):
        assert response.status_code in (413, 422), response.text
        assert "image 0: " in response.json()["detail"]
    mixed = client.post("/v1/classify", json=encoded(image_of(1), HOSTILE[name]))
    assert mixed.status_code in (413, 422)
    assert "image 1: " in mixed.json()["detail"]
    assert classes_of(client.post("/v1/classify", json=encoded(image_of(9)))) == [9]


def test_hundreds_of_damaged_bodies(client: TestClient) -> None:
    """Bits flipped and bytes cut anywhere: an answer or a 4xx, never a 5xx."""
    rng = np.random.default_rng(0)
    whole = {kind: image_of(7, kind, 64) for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")}
    for round in range(300):
        body = bytearray(list(whole.values())[round % len(whole)])
        for _ in range(rng.integers(1, 20)):
            body[rng.integers(len(body))] ^= 1 << rng.integers(8)
        if round % 3 == 0:
            del body[rng.integers(len(body)) :]
        response = client.post("/v1/classify", content=bytes(body), headers={"content-type": "image/png"})
        assert response.status_code in (200, 413, 422), response.text


@pytest.mark.parametrize(
    ("request_", "status", "part"),
    [
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "application/json"),
        ({"content": b"x"}, 415, "application/json"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "no JSON"),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400, "no JSON"),
        ({"content": b"\xff", "headers": {"content-type": "application/json"}}, 400, "no JSON"),
        ({"json": []}, 422, "the body"),
        ({"json": {"images": []}}, 422, "images"),
        ({"json": {"images": ["AA=="], "more": 1}}, 422, "more"),
        ({"json": {"images": ["no base64!"]}}, 422, "image 0: is no base64"),
        ({"json": {"images": ["ümlaut"]}}, 422, "image 0: is no base64"),
        ({"json": {"images": [1]}}, 422, "images.0"),
        ({"json": encoded(*[image_of(1)] * 5)}, 413, "at most 4"),
        ({"files": [("file", image_of(1))] * 5}, 413, "at most 4"),
        ({"files": [("other", image_of(1))]}, 422, "field `file`"),
        ({"data": {"file": "text"}, "files": [("x", b"")]}, 422, "field `file`"),
        ({"content": b"--a", "headers": {"content-type": "multipart/form-data"}}, 400, ""),
        ({"content": bytes(200_001), "headers": {"content-type": "image/png"}}, 413, "200000 bytes"),
        (
            {"content": image_of(1), "headers": {"content-type": "image/png"}, "params": {"top": 0}},
            422,
            "top",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_a_bad_request_says_why(client: TestClient, request_: dict, status: int, part: str) -> None:  # type: ignore[type-arg]
    response = client.post("/v1/classify", **request_)
    assert (response.status_code, part in response.json()["detail"]) == (status, True), response.text


def test_other_paths(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/v1/classify").status_code == 405
    assert client.get("/nothing").status_code == 404
    described = client.get("/v1/model").json()
    assert described == {"text": "a model whose answers are known", "paths": ["/v1/classify", "/v1/embed"]}
    for missing in (client.get("/v1/segment"), client.post("/v1/segment", json=encoded(image_of(1)))):
        assert missing.status_code == 404
        assert missing.json()["detail"].endswith("this one answers POST /v1/classify and POST /v1/embed")
    assert "<title>swin-moe</title>" in client.get("/").text
    assert client.get("/examples").json() == {"examples": 1}
    example = client.get("/examples/0")
    assert PIL.Image.open(io.BytesIO(example.content)).size == (SIDE, SIDE)
    assert client.get("/examples/1").status_code == 404
    assert client.get("/examples/-1").status_code == 404


def test_figures_for_prometheus(client: TestClient) -> None:
    client.post("/v1/classify", json=encoded(image_of(1), image_of(2)))
    client.post("/v1/classify", content=b"x", headers={"content-type": "image/png"})
    lines = client.get("/metrics").text.splitlines()
    assert 'swin_moe_requests_total{path="/v1/classify",status="200"} 1.0' in lines
    assert 'swin_moe_requests_total{path="/v1/classify",status="422"} 1.0' in lines
    assert "swin_moe_batch_images_sum 2.0" in lines
    assert "swin_moe_waiting_images 0.0" in lines


def test_the_interface_is_described(client: TestClient) -> None:
    api = client.get("/openapi.json").json()
    assert set(api["paths"]) == {"/v1/classify", "/v1/embed", "/v1/model", "/healthz", "/metrics"}
    classify = api["paths"]["/v1/classify"]["post"]
    assert set(classify["requestBody"]["content"]) == {"application/json", "multipart/form-data", "image/*"}
    assert set(classify["responses"]) == {"200", "400", "408", "413", "415", "422", "429", "500", "503"}
    json.dumps(api)
