"""`export --to hf` of a trained run: transformers makes the same images and the same predictions.

`AutoImageProcessor` and `pipeline` of transformers get the folder and nothing else. Where the long side of an
image is rounded up here and down there, the pixels are compared with a resize to their size.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import launcher
from data_shards.pack.sources.registry import synthetic
from launcher.cli.program import main
from swin_moe import InputSpec, build_model, save_weights
from swin_moe.weights.hf_processor import processor_gap
from tests.launcher.cli.test_convert import make
from tests.launcher.running import CONFIG, overrides, run_alone
from tests.models import small_swin

transformers = pytest.importorskip("transformers", reason="pip install transformers")

SIDE = 16
CROPS = (0.875, 1.0, 0.6)  # 16 / 0.875 is 18.29, 16 / 0.6 is 26.67: rounded down, and up
SIZES = ((32, 32), (40, 28), (21, 64), (100, 75), (16, 16), (9, 12), (333, 500), (64, 63), (27, 27), (18, 50))
MEAN = torch.tensor([0.25, 0.5, 0.625]).view(3, 1, 1)
STD = torch.tensor([0.25, 0.125, 0.5]).view(3, 1, 1)
NORMALIZATION = {"mean": tuple(MEAN.flatten().tolist()), "std": tuple(STD.flatten().tolist())}
OPTIONS = (  # a SwinV2 without experts; no default has its normalization
    "model.moe=null",
    "model.attention=cosine",
    "model.norm=post",
    "model.mlp_fc2_bias=true",
    f"data.mean={MEAN.flatten().tolist()}",
    f"data.std={STD.flatten().tolist()}",
    "train.duration=2 epochs",
    "optim.base_lr=0.1",
)


class Exported(NamedTuple):
    """A model of ours, and the folder that transformers reads."""

    trained: launcher.LoadedModel
    folder: Path


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with the first crop, and its export by the command in RUN/hf."""
    path = tmp_path_factory.mktemp("hf") / "run"
    run_alone("train", str(CONFIG), *overrides(shards, path, *OPTIONS, f"data.eval_crop={CROPS[0]}"))
    assert main(["export", str(path), str(path / "hf"), "--to", "hf"]) == 0
    return path


@pytest.fixture(params=CROPS)
def exported(run: Path, request: pytest.FixtureRequest, tmp_path: Path) -> Exported:
    """The run, and the same weights with other crops."""
    trained = launcher.load(run)
    if request.param == CROPS[0]:
        return Exported(trained, run / "hf")
    trained = replace(trained, inputs=replace(trained.inputs, eval_crop=request.param))
    return Exported(trained, save_weights(trained.model, tmp_path / "hf", "hf", trained.inputs))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of all classes in sizes and formats of their own, as files."""
    folder, files = tmp_path_factory.mktemp("pictures"), []
    samples = synthetic(1, len(SIZES), 10, 32).splits["val"]
    for number, size in enumerate(SIZES):
        image = PIL.Image.fromarray(samples[number]["image"]).resize(size, PIL.Image.Resampling.BICUBIC)
        for mode, suffix in (("RGB", "png"), ("RGB", "jpg"), ("L", "jpg")):
            files.append(folder / f"{number}{mode}.{suffix}")
            image.convert(mode).save(files[-1])
    return files


def same_size(picture: Path, eval_crop: float) -> bool:
    """Whether the resized image has one size here and there: round(x) and floor(x) of its long side."""
    short, long = sorted(PIL.Image.open(picture).size)
    exact = round(SIDE / eval_crop) * long / short
    return eval_crop == 1 or round(exact) == int(exact)


def cut_by_hand(picture: Path, edge: int) -> Tensor:
    """The centre (3, SIDE, SIDE) of an image, its short side resized to `edge`, its long side floored."""
    pixels = np.asarray(PIL.Image.open(picture).convert("RGB"))
    height, width = pixels.shape[:2]
    sides = [edge * side // min(height, width) for side in (height, width)]
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    image = F.interpolate(image, size=sides, mode="bicubic", antialias=True, align_corners=False)
    top, left = ((side - SIDE) // 2 for side in sides)
    return image[0, :, top : top + SIDE, left : left + SIDE]


def test_the_processor_gives_the_images_of_an_evaluation(exported: Exported, pictures: list[Path]) -> None:
    """Bit by bit where the sizes are the same; otherwise its own size resized with our kernel."""
    trained, processor = exported.trained, transformers.AutoImageProcessor.from_pretrained(exported.folder)
    crop, same = trained.inputs.eval_crop, 0
    for picture in pictures:
        theirs = processor(PIL.Image.open(picture), return_tensors="pt")["pixel_values"][0]
        if same_size(picture, crop):
            same += 1
            wanted = trained.transform(picture)
        else:
            wanted = (cut_by_hand(picture, round(SIDE / crop)) / 255 - MEAN) / STD
        torch.testing.assert_close(theirs, wanted, rtol=0, atol=1e-6)
    assert same >= len(pictures) // 2
    assert (same == len(pictures)) == (crop == 1)


def test_the_pil_backend_is_within_three_levels(exported: Exported, pictures: list[Path]) -> None:
    trained = exported.trained
    processor = transformers.AutoImageProcessor.from_pretrained(exported.folder, backend="pil")
    level = 1 / 255 / min(trained.inputs.std)
    for picture in (p for p in pictures if same_size(p, trained.inputs.eval_crop)):
        theirs = processor(PIL.Image.open(picture), return_tensors="pt")["pixel_values"][0]
        assert (theirs - trained.transform(picture)).abs().max() <= 3.01 * level


def test_a_pipeline_predicts_what_we_predict(exported: Exported, pictures: list[Path]) -> None:
    """The names of the classes, in their order, and the probabilities within 1e-5."""
    trained = exported.trained
    classify = transformers.pipeline("image-classification", str(exported.folder), top_k=10)
    chosen = [picture for picture in pictures if same_size(picture, trained.inputs.eval_crop)]
    best = set()
    for picture, found in zip(chosen, classify([str(path) for path in chosen]), strict=True):
        with torch.no_grad():
            wanted = trained.model(trained.transform(picture)[None]).logits.softmax(dim=-1)[0]
        scores = {answer["label"]: answer["score"] for answer in found}
        assert list(scores) == [(trained.classes or ())[i] for i in wanted.argsort(descending=True)]
        assert [scores[name] for name in trained.classes or ()] == pytest.approx(wanted.tolist(), abs=1e-5)
        best.add(found[0]["label"])
    assert len(best) > 2  # the images matter


def test_rectangular_images_have_a_processor_without_a_crop(tmp_path: Path, pictures: list[Path]) -> None:
    inputs = InputSpec(**NORMALIZATION, eval_crop=1.0)
    model = build_model(small_swin(image_size=(32, 64), window_size=2))
    loaded = launcher.LoadedModel(model=model, inputs=inputs)
    folder = save_weights(loaded.model, tmp_path / "hf", "hf", inputs)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    for picture in pictures:
        theirs = processor(PIL.Image.open(picture), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(theirs, loaded.transform(picture), rtol=0, atol=1e-6)


def test_without_a_processor_that_cuts_rectangles_the_weights_are_written(tmp_path: Path) -> None:
    model = build_model(small_swin(image_size=(32, 64), window_size=2))
    inputs = InputSpec(**NORMALIZATION, eval_crop=0.875)
    folder = save_weights(model, tmp_path / "hf", "hf", inputs)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    gap = processor_gap(model.config, inputs)
    assert re.search(r"cut 32x64 pixels .* data\.eval_crop \(0\.875\) .* data\.eval_crop=1\.0", gap or "")


def test_a_recipe_describes_the_images_of_files_that_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a YAML file with `model:` alone nothing is known, and the command says so."""
    config, source = make(tmp_path)
    line = ["convert", str(source), "--to", "hf", "--config", str(config)]
    assert main([*line, str(tmp_path / "without")]) == 0
    assert "without preprocessor_config.json: the weights do not say" in capsys.readouterr().out
    config.write_text(config.read_text() + "data: {std: [0.5, 0.25, 0.125], eval_crop: 1.0}\n")
    assert main([*line, str(tmp_path / "with")]) == 0
    assert "preprocessor_config" not in capsys.readouterr().out
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "with")
    assert list(processor.image_std) == [0.5, 0.25, 0.125]
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]  # the default of data.mean


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("model: 3", "model: Input should be a mapping"),
        ("data: {mean: [0.5]}", "data.mean"),
        ("data: []", "data:"),
    ],
)
def test_a_garbled_recipe_is_one_line(
    section: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, source = make(tmp_path)
    Path("bad.yaml").write_text(f"{section}\n")
    assert main(["convert", str(source), "out", "--config", "bad.yaml"]) == 2
    error = capsys.readouterr().err
    assert f"bad.yaml: {message}" in error
    assert error.count("\n") == 1


def test_a_recipe_of_any_kind_names_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `train` and `check` take it: also demo_cpu, which is no published model."""
    recipe = launcher.load("demo_cpu")
    source = save_weights(recipe.model, tmp_path / "in.pth", "official")
    assert main(["convert", str(source), str(tmp_path / "out"), "--config", "demo_cpu"]) == 0
    again = launcher.load(tmp_path / "out")
    assert again.inputs == recipe.inputs
    assert torch.equal(again.model.head.weight, recipe.model.head.weight)
