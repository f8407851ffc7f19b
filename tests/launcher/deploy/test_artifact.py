"""An artifact answers as its model does; whatever is damaged or of another version is one clear error."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import launcher
from launcher.deploy.artifact import load_artifact, open_predictor
from launcher.deploy.card import CARD, ArtifactError, read_card, record_files
from launcher.deploy.golden import GOLDEN, Golden, bound, difference, read_golden
from launcher.deploy.split import Judged, Split, compare
from launcher.deploy.verify import Report, in_this_process
from parallel.versions import version_of
from swin_moe.errors import ModelError
from swin_moe.moe.layer import RoutingOverrides
from swin_moe.weights.files import read_metadata
from tests.launcher.deploy.making import PLACES, RUN, make, make_here, pixels, weights
from tests.models import V2, small_moe, small_swin
from tests.recorded import RUNS

FILE = {"name": "model.pt2", "size_bytes": 1, "sha256": ""}
EXACT = RoutingOverrides(capacity_factor=0.0)


def test_an_artifact_answers_as_the_run(artifact: Path) -> None:
    """Any number of images; its transform is that of `launcher.load`."""
    loaded, opened = launcher.load(RUN), load_artifact(artifact)
    x = pixels(35, loaded.model.config)
    wanted = loaded.model(x, torch.zeros(35, dtype=torch.int64), EXACT)
    found = opened.run(x)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-6)
    load = next(iter(wanted.moe.values())).load
    assert torch.equal(found.experts[0].flatten().bincount(minlength=4), load)
    for number in (0, 1, 8, 32):
        torch.testing.assert_close(opened.run(x[:number]).logits, found.logits[:number], rtol=0, atol=1e-6)
    image = torch.randint(256, (20, 30, 3), dtype=torch.uint8).numpy()
    assert torch.equal(opened.transform(image), loaded.transform(image))
    assert opened.classes == loaded.classes
    with pytest.raises(ArtifactError, match=r"takes images of shape \(B, 3, 16, 16\), not \(2, 3, 8, 8\)"):
        opened.run(torch.zeros(2, 3, 8, 8))


def test_the_card_says_what_it_is(artifact: Path) -> None:
    card, config = read_card(artifact), launcher.load(RUN).model.config
    assert (card.target, card.precision, card.device, card.batch) == ("safetensors", "fp32", "cpu", (1, 32))
    assert (card.image_sides, card.model["embed_dim"]) == (config.image_sides, config.embed_dim)
    assert (card.origin.checkpoint, card.origin.step) == ("step-00000002", 2)
    assert card.outputs == {
        "logits": "(B, 10) float32",
        "features": "(B, 16) float32",
        "experts_0": "(B, 4, 2) int64",
    }
    assert card.experts is not None
    assert (card.experts.products, card.experts.cost) == ("dense", 2.0)  # 4 experts, 2 a token
    assert card.versions["torch"] == version_of("torch")
    assert card.checked is not None
    assert (card.checked.images, card.checked.agreement) == (8, 1.0)
    assert card.checked.difference <= card.checked.bound == 1e-4
    assert sorted(path.name for path in artifact.iterdir()) == [CARD, GOLDEN, "model.safetensors"]


def tampered(name: str) -> Any:
    """A runtime that computes something else than the model: a weight is moved before it starts."""

    def run(folder: Path, split: Split | None) -> Report:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] += 0.01
        metadata = read_metadata(folder / "model.safetensors")
        save_file(tensors, folder / "model.safetensors", metadata)
        rewrite(folder, files=[vars(record) for record in record_files(folder) if record.name != CARD])
        return in_this_process(folder, split)

    return run


def rewrite(folder: Path, **changes: Any) -> None:
    tree = json.loads((folder / CARD).read_text()) | changes
    (folder / CARD).write_text(json.dumps(tree))


@pytest.mark.parametrize("name", ["head.bias", "layers.1.blocks.0.mlp.fc1.weight"])
def test_a_program_that_computes_something_else_is_not_kept(name: str, tmp_path: Path) -> None:
    source = weights(tmp_path / "a.safetensors", small_swin(image_size=16, num_classes=10))
    with pytest.raises(ArtifactError, match="not kept: a logit of the golden images differs by"):
        make(tmp_path / "out", source, runtime=tampered(name))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_runtime_that_dies_leaves_nothing(tmp_path: Path) -> None:
    def dies(folder: Path, split: Split | None) -> Report:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", runtime=dies)
    assert list(tmp_path.iterdir()) == []


EXPERTS = {"moe": small_moe(top_k=2)}
OTHERS = [{}, V2, {"attention": "mlp"}, {"moe": small_moe(router="soft")}, {"image_size": (16, 24)}]


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        *((changes, "fp32") for changes in [EXPERTS, *OTHERS]),
        (EXPERTS, "fp16"),
        *(pytest.param(changes, "fp16", marks=pytest.mark.slow) for changes in OTHERS),
    ],
    ids=str,
)
def test_families(changes: dict[str, Any], precision: str, tmp_path: Path) -> None:
    """Against the model itself, loaded from the file that was deployed."""
    config = small_swin(**{"image_size": 16, "num_classes": 10, **changes})
    source = weights(tmp_path / "a.safetensors", config)
    opened = load_artifact(make_here(tmp_path / "out", source, precision=precision))
    x = pixels(3, config)
    wanted = launcher.load(source).model(x, torch.zeros(3, dtype=torch.int64), EXACT if config.moe else None)
    limit = (1e-4 if precision == "fp32" else 5e-2) * max(1, wanted.logits.abs().max().item())
    assert (opened.run(x).logits - wanted.logits).abs().max() <= limit
    assert (opened.run(x).logits - wanted.logits).abs().max() > 0 or precision == "fp32"


def break_folder(folder: Path, how: str) -> None:
    body = (folder / "model.safetensors").read_bytes()
    if how == "flipped":
        (folder / "model.safetensors").write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    elif how == "cut":
        (folder / "model.safetensors").write_bytes(body[:-5])
    elif how == "missing":
        (folder / "model.safetensors").unlink()
    elif how == "no card":
        (folder / CARD).unlink()
    else:
        (folder / CARD).write_text(how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("flipped", r"model\.safetensors is damaged: .* copy the folder again"),
        ("cut", r"model\.safetensors is damaged"),
        ("missing", r"model\.safetensors cannot be read: No such file"),
        ("no card", r"is no artifact of `swin-moe deploy`: it has no card\.json"),
        ("", r"card\.json cannot be read"),
        ("[]", r"was not written by `swin-moe deploy`"),
        ('{"format": "pt"}', r"was not written by `swin-moe deploy`"),
        ('{"format": "swin-moe artifact 2"}', r"has the format 'swin-moe artifact 2'; this version reads"),
        ('{"format": "swin-moe artifact 1"}', r"card\.json is damaged: target: required"),
    ],
)
def test_a_damaged_folder_is_one_error(how: str, message: str, artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(artifact, folder)
    break_folder(folder, how)
    with pytest.raises(ArtifactError, match=message) as raised:
        load_artifact(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": [0, 8]}, "batch"),
        ({"batch": [9, 8]}, "batch"),
        ({"target": "tensorrt"}, "target"),
        ({"files": []}, "files"),
        ({"files": [FILE, FILE | {"name": "../a.pt2"}]}, r"'\.\./a\.pt2' is no name of a file"),
        ({"model": {"in_chan": 3}}, "card.json is damaged: model: .*in_chan"),
        ({"more": 1}, "more: no such option"),
        ({"inputs": {"mean": [0.5], "std": [1, 1, 1], "eval_crop": 1.0}}, "inputs.mean"),
    ],
    ids=str,
)
def test_a_garbled_card_is_one_error(
    changes: dict[str, Any], message: str, artifact: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(artifact, folder)
    rewrite(folder, **changes)
    with pytest.raises(ArtifactError, match=message) as raised:
        load_artifact(folder)
    assert "\n" not in str(raised.value)


def test_a_predictor_of_a_run_is_an_artifact_without_a_folder(artifact: Path, tmp_path: Path) -> None:
    x = pixels(3, launcher.load(RUN).model.config)
    wanted = open_predictor(artifact).run(x)
    checkpoint = next((RUN / "checkpoints").glob("step-*"))
    for source in (RUN, checkpoint, artifact / "model.safetensors"):
        found = open_predictor(source).run(x)
        torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-6)
    half = open_predictor(RUN, precision="bf16").run(x)
    assert half.logits.dtype == torch.float32
    assert not torch.equal(half.logits, wanted.logits)
    with pytest.raises(ArtifactError, match=r"precision \(bf16\): the artifact .* is fp32"):
        open_predictor(artifact, precision="bf16")
    with pytest.raises(ArtifactError, match="leave out ema and config"):
        open_predictor(artifact, ema=True)


def test_what_cannot_be_deployed_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="task=simmim: its model has no classifier"):
        make(tmp_path / "out", RUNS / "simmim_stage1")
    moe = small_moe(router="random", balance_loss="none")
    source = weights(tmp_path / "a.safetensors", small_swin(image_size=16, num_classes=10, moe=moe))
    with pytest.raises(ModelError, match=r"model\.moe\.router \(random\)"):
        make(tmp_path / "out", source)
    (tmp_path / "there").mkdir()
    with pytest.raises(ArtifactError, match="there exists; choose another place"):
        make(tmp_path / "there")
    if not torch.cuda.is_available():
        with pytest.raises(ArtifactError, match="--device cuda: this machine has no GPU"):
            make(tmp_path / "out", device="cuda")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "there"]


def test_golden_images_of_training_where_there_is_no_validation(tmp_path: Path) -> None:
    made = make_here(tmp_path / "out", RUN, places=replace(PLACES, val=None))
    checked = read_card(made).checked
    assert checked is not None
    assert (checked.split, checked.top1, checked.images) == (None, None, 0)
    assert len(read_golden(made).images) == 16
    with pytest.raises(ArtifactError, match="no images for golden images: name shards with --data DIR"):
        make_here(tmp_path / "none", RUN, places=replace(PLACES, val=None, train=None))


def test_bounds_grow_with_the_logits() -> None:
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    assert bound(Golden(images, torch.tensor([[0.5, -0.25]])), "pt2", "fp32") == 1e-4
    assert bound(Golden(images, torch.tensor([[0.5, -20.0]])), "pt2", "fp32") == pytest.approx(2e-3)
    assert bound(Golden(images, torch.tensor([[4.0, 1.0]])), "onnx", "fp16") == pytest.approx(0.2)
    assert bound(Golden(images, torch.tensor([[4.0, 1.0]])), "onnx-int8", "fp32") == pytest.approx(1.0)
    assert bound(Golden(images, torch.tensor([[0.4, 0.1]])), "onnx-int8", "fp32") == pytest.approx(0.1)


def test_a_logit_that_is_no_number_does_not_pass(artifact: Path) -> None:
    opened, images = load_artifact(artifact), read_golden(artifact)
    for size in (1, 3, 8, 32):
        assert difference(opened, images, size) < 1e-6
    broken = Golden(images.images, images.logits.clone())
    broken.logits[-1, -1] = float("nan")
    assert difference(opened, broken, 3) != difference(opened, broken, 3)
    assert Report(differences={"1": 0.0, "8": None}).difference == float("inf")


@pytest.mark.parametrize(
    ("wrong", "images", "points", "passes"),
    [(5, 10_000, 0.05, True), (6, 10_000, 0.05, False), (1, 64, 0.05, True), (2, 64, 0.05, False)]
    + [(50, 10_000, 0.5, True), (51, 10_000, 0.5, False)],
)
def test_accuracies_are_compared_in_points(wrong: int, images: int, points: float, passes: bool) -> None:
    """0.05 points of 10,000 images are five; of 64 images less than one, and one is allowed."""
    labels = torch.zeros(images, dtype=torch.int64)
    chosen = labels.clone()
    chosen[:wrong] = 1
    reason = compare(Judged(chosen, labels), Judged(labels, labels), points)
    assert (reason is None) is passes
    assert reason is None or f"{(images - wrong) / images:.2%}, the model's 100.00%" in reason
