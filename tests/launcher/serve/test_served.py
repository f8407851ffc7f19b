"""A real model behind HTTP: the answers are those of the model, and the command starts it."""

import base64
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest
import torch
from fastapi.testclient import TestClient

from launcher.cli.program import main
from launcher.deploy.artifact import open_predictor
from launcher.evaluation.loaded import load
from launcher.serve.app import create_app
from launcher.serve.classify import ClassifyInterface
from launcher.serve.options import ServeOptions
from launcher.serve.served import ServedClassifier
from swin_moe.backbone.model import build_model
from swin_moe.moe.layer import RoutingOverrides
from swin_moe.weights.export import save_weights
from swin_moe.weights.input_spec import InputSpec
from tests.models import randomize, small_moe, small_swin

EXACT = RoutingOverrides(capacity_factor=0.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with experts in two stages, and the names of its classes."""
    path = tmp_path_factory.mktemp("weights") / "moe.safetensors"
    model = randomize(build_model(small_swin(moe=small_moe(top_k=2))))
    inputs = InputSpec(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), eval_crop=0.8, classes=tuple("abcde"))
    return save_weights(model, path, "native", inputs)


def photo(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 70, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_the_answers_are_those_of_the_model(weights: Path) -> None:
    loaded = load(weights)
    bodies = [photo(seed) for seed in range(5)]
    images = torch.stack([loaded.transform(body) for body in bodies])
    with torch.no_grad():
        output = loaded.model(images, torch.zeros(5, dtype=torch.int64), EXACT)
    wanted = output.logits.double().softmax(1)
    with TestClient(
        create_app(ClassifyInterface(ServedClassifier(open_predictor(weights))), ServeOptions())
    ) as client:
        body = {"images": [base64.b64encode(body).decode() for body in bodies]}
        results = client.post("/v1/classify?top=5&experts=true", json=body).json()["results"]
        described = client.get("/v1/model").json()
    for result, row in zip(results, wanted, strict=True):
        found = torch.zeros(5, dtype=torch.float64)
        for one in result["top"]:
            assert one["name"] == "abcde"[one["index"]]
            found[one["index"]] = one["probability"]
        torch.testing.assert_close(found, row, rtol=0, atol=1e-6)
    maps = results[0]["experts"]
    assert [(each["layer"], each["height"], each["width"]) for each in maps] == [
        ("layers.0.blocks.1", 8, 8),
        ("layers.1.blocks.0", 4, 4),
    ]
    for number, (name, stats) in enumerate(output.moe.items()):
        chosen = torch.tensor([result["experts"][number]["experts"] for result in results])
        assert [result["experts"][number]["layer"] for result in results] == [name] * 5
        assert torch.equal(chosen.flatten().bincount(minlength=4), stats.load)
    assert described["image"] == {"channels": 3, "height": 32, "width": 32}
    assert "5 classes, images of 32 x 32 pixels, 2 layers with experts" in described["text"]


def test_the_command(weights: Path) -> None:
    command = [sys.executable, "-m", "launcher", "serve", str(weights), "--port", "0", "--max-wait-ms", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        answer = httpx.post(f"{url}/v1/classify", content=photo(0), headers={"content-type": "image/png"})
        assert {one["name"] for one in answer.json()["results"][0]["top"]} == set("abcde")
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], ["nothing"]),
        (["--max-images", "300"], ["--max-images (300)", "--max-queue (256)"]),
        (["--host", "no.such.host.invalid"], ["--host (no.such.host.invalid)"]),
        (["--port", "70000"], ["--port (70000)"]),
    ],
)
def test_a_mistake_is_one_line(
    weights: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0].startswith("--"):
        arguments = [str(weights), *arguments]
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert all(word in error for word in words)
