"""Predictions of files, folders and shards are the model's and an evaluation's; bad images do no harm."""

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open

from data_shards.augment.normalize import Normalize
from data_shards.image.geometry import EvalTransform
from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling
from data_shards.stream.transform import LabelledImages
from launcher.cli.program import main
from launcher.config.errors import ConfigError
from launcher.evaluation.loaded import load
from launcher.predict.inputs import Sought, image_inputs
from swin_moe.backbone.model import build_model
from swin_moe.heads.classification import evaluation_sums
from swin_moe.moe.layer import RoutingOverrides
from swin_moe.random.keyed import sample_keys
from swin_moe.weights.export import save_weights
from swin_moe.weights.input_spec import InputSpec
from tests.models import randomize, small_moe, small_swin

EXACT = RoutingOverrides(capacity_factor=0.0)
CLASSES = tuple("abcde")


@pytest.fixture(scope="module", params=["dense", "experts"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes: dict[str, Any] = {"moe": small_moe(top_k=2)} if request.param == "experts" else {}
    model = randomize(build_model(small_swin(**changes)), std=0.2)
    inputs = InputSpec(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), eval_crop=0.875, classes=CLASSES)
    return save_weights(model, tmp_path_factory.mktemp("w") / "model.safetensors", "native", inputs)


def photo(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Images in a folder with folders, sorted as a walk meets them."""
    names = ["a.png", "b.jpg", "with space,\nand line.png", "sub/c.png", "sub/deep/d.png"]
    return [photo(tmp_path / "photos" / name, seed) for seed, name in enumerate(names)]


def predicted(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["predict", *map(str, words), "--json"]) == code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def truth(weights: Path, paths: list[Path]) -> torch.Tensor:
    """The probabilities of the model itself: (images, classes)."""
    loaded = load(weights)
    images = torch.stack([loaded.transform(path) for path in paths])
    with torch.no_grad():
        logits = loaded.model(images, torch.zeros(len(images), dtype=torch.int64), EXACT).logits
    return logits.double().softmax(1)


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_a_folder(weights: Path, photos: list[Path], batch: int, capsys: pytest.CaptureFixture[str]) -> None:
    records = predicted(capsys, weights, photos[0].parent, "--batch-size", batch)
    assert [record["file"] for record in records] == list(map(str, photos))
    for record, row in zip(records, truth(weights, photos), strict=True):
        found = torch.zeros(5, dtype=torch.float64)
        for one in record["top"]:
            assert one["name"] == CLASSES[one["index"]]
            found[one["index"]] = one["probability"]
        torch.testing.assert_close(found, row, rtol=0, atol=1e-6)
        assert [one["probability"] for one in record["top"]] == sorted(found.tolist(), reverse=True)


def test_places_in_their_order(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = photos[0].parent
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos[3]}\n\n{photos[0]}\n"))
    names = [image.name for image in image_inputs([f"{root}/*.jpg", "-", str(photos[4])])]
    assert names == [str(photos[i]) for i in (1, 3, 0, 4)]


def test_loops_and_doubles_are_listed_once(photos: list[Path]) -> None:
    root = photos[0].parent
    (root / "sub/up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "notes.txt").write_text("no image")
    assert [image.name for image in image_inputs([str(root)])] == list(map(str, photos))


def test_another_kind_of_files(photos: list[Path]) -> None:
    root = photos[0].parent
    (root / "sub/B.MP4").write_bytes(b"a video")
    (root / "a.webm").write_bytes(b"a video")
    sought = Sought(member="video", suffixes=("mp4", "webm"))
    names = [image.name for image in image_inputs([str(root)], sought)]
    assert names == [f"{root}/a.webm", f"{root}/sub/B.MP4"]
    with pytest.raises(ConfigError, match="holds no videos, and no manifest.json"):
        next(image_inputs([str(root)], replace(sought, suffixes=("avi",))))


def test_bad_images_do_no_harm(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = photo(tmp_path / "good.png", 1)
    bodies = {
        "empty.jpg": b"",
        "page.jpg": b"<html>404</html>",
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "cut.png": good.read_bytes()[:200],
    }
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    photo(tmp_path / "folder.png/inside.png", 2)
    bad = [tmp_path / name for name in (*bodies, "broken.png")]
    records = predicted(capsys, weights, *bad, good, tmp_path / "folder.png", code=2)
    assert all("error" in record and "top" not in record for record in records[:5])
    assert "No such file" in records[4]["error"]
    assert [Path(record["file"]).name for record in records[5:]] == ["good.png", "inside.png"]
    wanted = truth(weights, [good, tmp_path / "folder.png/inside.png"])
    for record, row in zip(records[5:], wanted, strict=True):
        assert record["top"][0]["probability"] == pytest.approx(row.max().item(), abs=1e-6)


def test_a_name_that_is_no_utf8(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsencode(photo(tmp_path / "x.png", 0).parent) + b"/\xff.png"
    os.rename(tmp_path / "x.png", name)
    [record] = predicted(capsys, weights, os.fsdecode(name))
    assert os.fsencode(record["file"]) == name
    for form in ([], ["--csv"]):
        assert main(["predict", str(weights), os.fsdecode(name), *form]) == 0


@pytest.mark.parametrize("place", ["nothing.png", "none/*.png", "void"])
def test_a_place_without_images_is_refused_first(
    weights: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "void").mkdir()
    good = photo(tmp_path / "good.png", 0)
    assert main(["predict", str(weights), str(good), str(tmp_path / place)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert str(tmp_path / place) in err


def test_text_and_csv(weights: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(weights), *map(str, photos), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith(f"{photos[0]}: ")
    assert main(["predict", str(weights), *map(str, photos), "--csv", "--top", "2"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == [
        "file",
        "label",
        "error",
        "index1",
        "name1",
        "probability1",
        "index2",
        "name2",
        "probability2",
    ]
    assert [row[0] for row in rows[1:]] == list(map(str, photos))
    wanted = truth(weights, photos)
    assert [int(row[3]) for row in rows[1:]] == wanted.argmax(1).tolist()
    assert [float(row[5]) for row in rows[1:]] == pytest.approx(wanted.amax(1).tolist(), abs=1e-6)


def test_features(
    weights: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "features.safetensors"
    (tmp_path / "bad.png").write_bytes(b"")
    predicted(capsys, weights, photos[0], tmp_path / "bad.png", photos[1], "--features", file, code=2)
    loaded = load(weights)
    images = torch.stack([loaded.transform(path) for path in photos[:2]])
    with torch.no_grad():
        wanted = loaded.model.forward_pooled(images, torch.zeros(2, dtype=torch.int64), EXACT)[0]
    with safe_open(file, framework="pt") as saved:
        assert json.loads(saved.metadata()["files"]) == list(map(str, photos[:2]))
        torch.testing.assert_close(saved.get_tensor("features"), wanted, rtol=1e-5, atol=1e-5)
    assert main(["predict", str(weights), str(photos[0]), "--features", str(file)]) == 2


def test_shards_have_the_accuracy_of_an_evaluation(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The very hits, over 96 images in several shards, of the stream and the sums that `eval` uses."""
    source = synthetic(8, 96, 5, 48)
    pack(source, "val", tmp_path / "val", samples_per_shard=20)
    records = predicted(capsys, weights, tmp_path / "val", "--batch-size", 7)
    assert len(records) == 96
    hits = sum(record["top"][0]["index"] == record["label"] for record in records)
    loaded = load(weights)
    sides, crop = loaded.model.config.image_sides, loaded.inputs.eval_crop
    transform = LabelledImages(EvalTransform(image_size=sides, crop_ratio=crop))
    sums = torch.zeros(4, dtype=torch.float64)
    normalize = Normalize(loaded.inputs.mean, loaded.inputs.std, torch.device("cpu"))
    with EvalStream(tmp_path / "val", EvalSampling(batch_size=16), transform) as stream, torch.no_grad():
        for batch in stream:
            keys = sample_keys(0, batch.positions)
            logits = loaded.model(normalize(batch["image"]), keys, EXACT).logits
            sums += evaluation_sums(logits, batch["label"], batch.weights)
    assert int(sums[3]) == 96
    assert hits == int(sums[1])
    assert 0 < hits < 96
