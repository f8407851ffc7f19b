"""`launcher.load` and `swin_moe.load`: runs, checkpoints, weights, recipes; images as evaluation sees them.

`launcher.train` and a run that is loaded after it: the examples of docs/python.md, which tests/test_docs.py
runs.
"""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

import data_shards
import launcher
import swin_moe
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling
from launcher.cli.program import main
from launcher.config.load import dump_config, load_config
from launcher.tasks.image_data import eval_images, normalize_images
from swin_moe.weights.hf import config_json
from tests.models import small_swin
from tests.recorded import RUNS, SHARDS

RUN = RUNS / "swin_moe_ep2_stage1"


def test_a_run_its_checkpoint_and_its_export_are_one_model(tmp_path: Path) -> None:
    """Equal to a model that is built and loaded by hand; classes as the run recorded them."""
    config = load_config(RUN / "config.yaml")
    by_hand = swin_moe.build_model(config.model).eval()
    swin_moe.load_weights(by_hand, RUN)
    images, keys = torch.randn(2, 3, *config.model.image_sides), torch.zeros(2, dtype=torch.int64)
    wanted = by_hand(images, keys).logits
    trained = launcher.load(RUN)
    file = swin_moe.save_weights(trained.model, tmp_path / "a.safetensors", "native", trained.inputs)
    for source in (RUN, next((RUN / "checkpoints").glob("step-*")), file):
        loaded = launcher.load(source)
        assert torch.equal(loaded.model(images, keys).logits, wanted)
        assert torch.equal(swin_moe.load(source)(images, keys).logits, wanted)
        assert loaded.inputs == trained.inputs
        assert loaded.inputs.mean == config.data.mean
    assert trained.classes is not None
    assert len(trained.classes) == config.model.num_classes


def test_predictions_are_those_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the eager model here, by the frozen one there; experts drop nothing in both."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    trained = launcher.load(RUN)
    found = trained.predict(tmp_path / "a.png", top=3)
    assert main(["predict", str(RUN), str(tmp_path / "a.png"), "--top", "3", "--json"]) == 0
    [record] = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(one.index, one.name) for one in found] == [(one["index"], one["name"]) for one in record["top"]]
    wanted = [one["probability"] for one in record["top"]]
    assert [one.probability for one in found] == pytest.approx(wanted, rel=1e-5)
    assert trained.predict(pixels, top=3) == found
    assert trained.classes is not None
    assert found[0].name in trained.classes
    everything = trained.predict(pixels, top=99)
    assert len(everything) == 10
    assert sum(one.probability for one in everything) == pytest.approx(1.0)
    with pytest.raises(swin_moe.ModelError, match=r"top \(0\) must be at least 1"):
        trained.predict(pixels, top=0)


def test_a_task_without_a_classifier_is_named() -> None:
    message = "trained with task=simmim, and only classifiers are loaded so: `swin-moe predict` runs"
    with pytest.raises(swin_moe.WeightsError, match=message):
        launcher.load(RUNS / "simmim_stage1")


def test_an_encoder_without_a_classifier_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of it does not say which task trained it."""
    encoder, image = tmp_path / "encoder.safetensors", tmp_path / "image.png"
    PIL.Image.new("RGB", (32, 32)).save(image)
    assert main(["export", str(RUNS / "simmim_stage1"), str(encoder)]) == 0
    assert main(["predict", str(encoder), str(image)]) == 2
    error = capsys.readouterr().err
    assert f"{encoder}: the weights have no classifier. Fine-tune them with `swin-moe train RECIPE " in error
    assert "head=" not in error.replace("pretrained_head=", "")


def test_an_export_names_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command; another head has other classes, of which the file says nothing."""
    out = tmp_path / "out.safetensors"
    assert main(["export", str(RUN), str(out)]) == 0
    spec = swin_moe.input_spec_of(RUN)
    assert spec is not None
    assert launcher.load(out).inputs == spec
    hf = config_json(small_swin(num_classes=len(spec.classes or ())), spec)
    assert hf["id2label"]["3"] == (spec.classes or ())[3]
    assert config_json(small_swin())["id2label"]["3"] == "LABEL_3"
    config = load_config(RUN / "config.yaml", ["model.num_classes=3"])
    (tmp_path / "other.yaml").write_text(dump_config(config))
    line = ["convert", str(RUN), str(tmp_path / "b"), "--config", str(tmp_path / "other.yaml")]
    assert main([*line, "--head", "replace"]) == 0
    assert launcher.load(tmp_path / "b").classes is None


@pytest.mark.parametrize("eval_crop", [0.875, 1.0])
def test_the_transform_gives_the_pixels_of_an_evaluation(eval_crop: float) -> None:
    """Of every image of a split, by the evaluation's own stream and task."""
    overrides = ["model.image_size=[24, 32]", f"data.eval_crop={eval_crop}"]
    config = load_config(RUN / "config.yaml", overrides)
    loaded = launcher.LoadedModel(
        model=swin_moe.build_model(config.model),
        inputs=swin_moe.InputSpec(mean=config.data.mean, std=config.data.std, eval_crop=eval_crop),
    )
    transform = eval_images(config).transform
    with EvalStream(SHARDS / "val", EvalSampling(batch_size=4), transform) as stream:
        batch = next(iter(stream))
        rows = [(shard, row) for shard, n in enumerate(stream.manifest.samples_per_shard) for row in range(n)]
        bodies = [stream.fetch(*rows[position])["image"] for position in batch.positions]
        wanted = normalize_images(batch["image"], config.data, torch.device("cpu"))
        assert torch.equal(torch.stack([loaded.transform(body) for body in bodies]), wanted)


def test_an_image_may_be_a_file_pixels_or_bytes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    loaded = launcher.load("demo_cpu")
    wanted = loaded.transform(pixels)
    assert wanted.shape == (3, 32, 32)
    for same in (image, buffer.getvalue(), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert torch.equal(loaded.transform(same), wanted)
    with pytest.raises(data_shards.DataError):
        loaded.transform(b"no image")


def test_a_recipe_gives_initial_weights_and_its_normalization() -> None:
    loaded = launcher.load("demo_cpu")
    config = load_config("demo_cpu")
    assert (loaded.inputs.mean, loaded.inputs.eval_crop) == (config.data.mean, config.data.eval_crop)
    assert loaded.classes is None
    assert not loaded.model.training
    initial = swin_moe.build_model(config.model, seed=config.seed).state_dict()
    assert all(torch.equal(tensor, initial[name]) for name, tensor in loaded.model.state_dict().items())


def test_weights_of_others_take_their_model_from_a_recipe(tmp_path: Path) -> None:
    model = swin_moe.build_model(small_swin(), seed=3)
    file = swin_moe.save_weights(model, tmp_path / "a.pth", "official")
    with pytest.raises(swin_moe.WeightsError, match=r'which model it is of; pass config="NAME"'):
        swin_moe.load(file)
    assert torch.equal(swin_moe.load(file, small_swin()).head.weight, model.head.weight)
    with pytest.raises(swin_moe.WeightsError, match="did you mean swin_tiny_patch4_window7_224"):
        swin_moe.load("swin_tony_patch4_window7_224")
    Path("tiny.yaml").write_text(
        "run_dir: runs/x\n"
        "model: {image_size: 32, num_classes: 5, embed_dim: 8, depths: [2, 2], num_heads: [2, 4], "
        "window_size: 4}\n"
        "data: {train: a, val: b, mean: [0.5, 0.5, 0.5]}\n"
    )
    loaded = launcher.load(file, "tiny.yaml")
    assert torch.equal(loaded.model.head.weight, model.head.weight)
    assert loaded.inputs.mean == (0.5, 0.5, 0.5)


def test_packages_are_imported_without_torch_and_offer_what_they_say() -> None:
    code = "import sys, launcher, swin_moe, data_shards; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    for package in (launcher, swin_moe, data_shards):
        assert [name for name in package.__all__ if getattr(package, name, None) is None] == []
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = package.nothing
    assert swin_moe.__version__ == "0.1.0"


@pytest.mark.parametrize(
    "text",
    [
        "{broken",
        "[]",
        "{}",
        '{"mean": 3}',
        '{"mean": [0, 0, 0], "std": [1, 1, 0], "eval_crop": 1, "classes": null}',
        '{"mean": [0, 0, NaN], "std": [1, 1, 1], "eval_crop": 1, "classes": null}',
        '{"mean": [0, 0, 0], "std": [1, 1, 1], "eval_crop": "x", "classes": null}',
        '{"mean": [0, 0, 0], "std": [1, 1, 1], "eval_crop": 1, "classes": "cat"}',
    ],
)
def test_a_garbled_description_of_the_images_is_one_error(text: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"inputs": text})
    with pytest.raises(swin_moe.WeightsError, match=r"a\.safetensors: what it says of its images .* damaged"):
        swin_moe.input_spec_of(tmp_path / "a.safetensors")
