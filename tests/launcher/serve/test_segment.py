"""The HTTP interface of a model with a class for each pixel."""

import asyncio
import base64
import io
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from fastapi.testclient import TestClient

from launcher.serve.app import create_app
from launcher.serve.batcher import BatchOptions
from launcher.serve.options import Limits, ServeOptions
from launcher.serve.segment import SegmentInterface
from launcher.tasks.answers import NOT_FINITE
from tests.launcher.serve.known import KnownSegmenter, halves
from tests.launcher.serve.test_app import HOSTILE, encoded

LIMITS = Limits(body_bytes=200_000, images=4, pixels=100_000)


@pytest.fixture
def client() -> Iterator[TestClient]:
    options = ServeOptions(limits=LIMITS, batches=BatchOptions(max_wait_s=1.0))
    app = create_app(SegmentInterface(KnownSegmenter()), options)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def decoded(text: str) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(base64.b64decode(text)))


def results(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def test_an_answer(client: TestClient) -> None:
    """3 of 4 columns are of class 7.

    Its hue is 7 * 0.618034 - 4 = 0.3262, between yellow (1 / 6) and green (2 / 6), and its saturation is 0.8:
    green is 255, blue 255 * 0.2 = 51, red 255 * (1 - 0.8 * (6 * 0.3262 - 1)) = 60. The hue of class 3 is
    0.8541, between magenta and red: red is 255, green 51, blue 255 * (1 - 0.8 * (6 * 0.8541 - 5)) = 230.
    """
    [found] = results(client.post("/v1/segment?view=true", json=encoded(halves(3, 7))))
    label_image, view = decoded(found.pop("map")), decoded(found.pop("view"))
    assert found == {
        "height": 5,
        "width": 8,
        "classes": [
            {"index": 7, "name": "red 7", "share": 0.75, "colour": "#3cff33"},
            {"index": 3, "name": "red 3", "share": 0.25, "colour": "#ff33e6"},
        ],
    }
    assert label_image.mode == "L"
    assert np.array_equal(np.asarray(label_image), [[3] * 2 + [7] * 6] * 5)
    assert np.array_equal(np.asarray(view), np.asarray(PIL.Image.open(io.BytesIO(halves(3, 7)))))


def test_every_form_of_a_request(client: TestClient) -> None:
    images = [halves(left, 1, width=8 * left) for left in (2, 5, 9)]
    files = [("file", (f"{number}.png", image)) for number, image in enumerate(images)]
    for response in (
        client.post("/v1/segment", files=files),
        client.post("/v1/segment", json=encoded(*images)),
    ):
        assert [one["width"] for one in results(response)] == [16, 40, 72]
        assert [one["classes"][1]["index"] for one in results(response)] == [2, 5, 9]
        assert all(one["view"] is None for one in results(response))
    [raw] = results(client.post("/v1/segment", content=images[0], headers={"content-type": "image/png"}))
    assert raw["width"] == 16


def test_a_large_image_comes_back_smaller(client: TestClient) -> None:
    [found] = results(client.post("/v1/segment?view=true", json=encoded(halves(1, 2, 4096, 3))))
    assert decoded(found["map"]).size == (4096, 3)
    assert decoded(found["view"]).size == (1024, 1)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_image_is_a_4xx_that_names_it(client: TestClient, name: str) -> None:
    mixed = client.post("/v1/segment", json=encoded(halves(1, 2), HOSTILE[name]))
    assert mixed.status_code in (413, 422)
    assert "image 1: " in mixed.json()["detail"]


def test_an_image_without_an_answer_is_named(client: TestClient) -> None:
    response = client.post("/v1/segment", json=encoded(halves(1, 2), halves(1, 2, height=1)))
    assert (response.status_code, response.json()["detail"]) == (422, "image 1: one row alone")


def test_numbers_that_are_not_finite_are_the_fault_of_the_model(client: TestClient) -> None:
    response = client.post("/v1/segment", json=encoded(halves(1, 2, height=2)))
    assert (response.status_code, response.json()["detail"]) == (500, NOT_FINITE)


def test_a_pass_has_one_image_and_waits_for_no_other(client: TestClient) -> None:
    """`max_wait_s` is a second here."""
    results(client.post("/v1/segment", json=encoded(*[halves(1, 2)] * 3)))
    lines = client.get("/metrics").text.splitlines()
    assert "swin_moe_batch_images_count 3.0" in lines
    assert "swin_moe_batch_images_sum 3.0" in lines


def test_paths(client: TestClient) -> None:
    assert client.get("/v1/model").json()["paths"] == ["/v1/segment"]
    for path in ("/v1/classify", "/v1/embed"):
        missing = client.post(path, json=encoded(halves(1, 2)))
        wanted = f"{path} is for other models; this one answers POST /v1/segment"
        assert (missing.status_code, missing.json()["detail"]) == (404, wanted)
    api = client.get("/openapi.json").json()
    assert set(api["paths"]) == {"/v1/segment", "/v1/model", "/healthz", "/metrics"}
    segment = api["paths"]["/v1/segment"]["post"]
    assert set(segment["requestBody"]["content"]) == {"application/json", "multipart/form-data", "image/*"}
    assert set(segment["responses"]) == {"200", "400", "408", "413", "415", "422", "429", "500", "503"}


class Held(KnownSegmenter):
    """Answers when it is let."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def class_map(self, example: np.ndarray) -> np.ndarray:
        assert self.go.wait(60)
        return super().class_map(example)


def test_a_full_server_says_so_and_answers_what_it_took() -> None:
    """Four images are being answered; the fifth is refused."""
    model = Held()
    options = ServeOptions(batches=BatchOptions(max_queue=4))
    app = create_app(SegmentInterface(model), options)

    async def crowd() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        client = httpx.AsyncClient(transport=transport, base_url="http://known")
        async with client, app.router.lifespan_context(app):
            first = [
                asyncio.create_task(client.post("/v1/segment", json=encoded(halves(one, 1))))
                for one in (2, 3, 4, 5)
            ]
            while "swin_moe_waiting_images 3.0\n" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0.01)
            refused = await client.post("/v1/segment", json=encoded(halves(6, 1)))
            model.go.set()
            return [refused, *await asyncio.gather(*first)]

    refused, *answers = asyncio.run(crowd())
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert [results(one)[0]["classes"][1]["index"] for one in answers] == [2, 3, 4, 5]
