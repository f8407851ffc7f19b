"""SimMIM as a run: the layout changes nothing, a stop changes nothing, and its encoder is fine-tuned."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_shards.image.geometry import EvalTransform
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling
from data_shards.stream.transform import LabelledImages
from launcher.config.load import load_config
from launcher.tasks.image_data import normalize_images
from swin_moe import build_backbone, build_model, load_weights
from tests.accelerator import on_either_processor
from tests.distributed import run_on_ranks
from tests.faults import Fault, one_line
from tests.faults import run as run_ranks
from tests.launcher.metrics.test_neighbours import by_loops
from tests.launcher.running import CONFIG, command, evaluations, only, overrides, run_alone, steps
from tests.launcher.tasks.layouts import task_line

STEPS = 8
SIMMIM = (
    "task=simmim",
    "data.augment=null",
    "simmim.mask_patch_size=8",
    "simmim.norm_target_window=5",
    f"train.duration={STEPS} steps",
    "train.eval_every=4 steps",
    "checkpoint.every=4 steps",
    "optim.schedule=multistep",
    "optim.decay_at=[6 steps]",
)
FIGURES = ("step", "loss", "aux_loss", "lr", "grad_norm", "dropped_fraction")


def line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return task_line(overrides(shards, run_dir, *SIMMIM, *more))


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank."""
    path = tmp_path_factory.mktemp("simmim") / "run"
    outcome = run_alone(*line(shards, path))
    assert "  evaluation       reconstruction loss" in outcome.out
    return path


@pytest.mark.parametrize(
    "layout",
    [
        ["parallel.ep_size=2"],
        *on_either_processor(["parallel.zero_stage=3", "parallel.ep_size=2"]),
        pytest.param(["train.micro_batch_size=4"], marks=pytest.mark.slow),
    ],
)
def test_two_ranks_are_one(shards: Path, tmp_path: Path, whole: Path, layout: list[str]) -> None:
    outcomes = run_on_ranks(command, 2, *line(shards, tmp_path / "run", *layout))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    for found, wanted in zip(steps(tmp_path / "run"), steps(whole), strict=True):
        assert only(found, FIGURES) == pytest.approx(only(wanted, FIGURES), rel=2e-5)
    for found, wanted in zip(evaluations(tmp_path / "run"), evaluations(whole), strict=True):
        assert found["eval_loss"] == pytest.approx(wanted["eval_loss"], rel=1e-5)
        assert found["eval_images"] == 64


def test_it_learns_at_the_rates_of_its_schedule(whole: Path) -> None:
    rates = [record["lr"] for record in steps(whole)]
    assert rates[2:] == pytest.approx([rates[2]] * 4 + [rates[2] / 10] * 2)
    assert steps(whole)[-1]["loss"] < steps(whole)[0]["loss"]


@pytest.mark.parametrize(("ranks", "batch"), [(1, 7), (2, 12)])
def test_the_evaluation_loss_is_of_no_layout(whole: Path, ranks: int, batch: int) -> None:
    """The masks are those of the images, whatever batch they come in."""
    found = run_on_ranks(command, ranks, "eval", str(whole), f"train.eval_batch_size={batch}")
    wanted = evaluations(whole)[-1]["eval_loss"]
    assert f"reconstruction loss {wanted:.4f} on 64 images" in found[0].out


def test_neighbours_are_an_option_of_the_evaluation(shards: Path, tmp_path: Path, whole: Path) -> None:
    """They change nothing else, are those of the encoder's features, and no layout or batch changes them."""
    run = tmp_path / "run"
    outcome = run_alone(*line(shards, run, "simmim.eval_neighbours=5"))
    assert ["eval_knn" in found for found in evaluations(run)] == [True, True]
    for found, wanted in zip(evaluations(run), evaluations(whole), strict=True):
        assert (found["eval_loss"], "eval_knn" in wanted) == (wanted["eval_loss"], False)
    knn = evaluations(run)[-1]["eval_knn"]
    assert f"5-NN top-1 {knn:.2%} on 64 images" in outcome.out
    assert knn == neighbours_by_loops(run, shards, 5)
    for ranks, batch in ((1, 7), (2, 12)):
        found = run_on_ranks(command, ranks, "eval", str(run), f"train.eval_batch_size={batch}")
        assert f"; 5-NN top-1 {knn:.2%} on 64 images" in found[0].out


def neighbours_by_loops(run: Path, shards: Path, neighbours: int) -> float:
    """The share of images whose class the others vote for, with the weights of a checkpoint in one batch."""
    config = load_config(run / "config.yaml")
    model = build_backbone(config.model).eval()
    load_weights(model, run)
    crop = EvalTransform(image_size=16, crop_ratio=config.data.eval_crop)
    with EvalStream(shards / "val", EvalSampling(batch_size=64), LabelledImages(crop)) as stream:
        (batch,) = stream
    images = normalize_images(batch["image"], config.data, torch.device("cpu"))
    with torch.no_grad():
        features, _ = model.forward_pooled(images)
    labels = batch["label"].tolist()
    hits = [a == b for a, b in zip(by_loops(features, labels, neighbours), labels, strict=True)]
    return sum(hits) / len(hits)


def test_stopped_and_resumed_is_the_same_run(shards: Path, tmp_path: Path) -> None:
    paths = tmp_path / "whole", tmp_path / "stopped"
    assert [rank.code for rank in run_ranks(2, line(shards, paths[0], "parallel.ep_size=2"))] == [0, 0]
    stopped = line(shards, paths[1], "parallel.ep_size=2")
    assert "Stopped" in one_line(run_ranks(2, stopped, Fault("SIGUSR1", step=4)), "Stopped")
    assert [rank.code for rank in run_ranks(2, stopped)] == [0, 0]
    for found, wanted in zip(steps(paths[1]), steps(paths[0]), strict=True):
        assert only(found, FIGURES) == only(wanted, FIGURES)
    losses = [[record["eval_loss"] for record in evaluations(path)] for path in paths]
    assert losses[0] == losses[1]


def test_a_picture_of_image_mask_and_reconstruction(whole: Path) -> None:
    board = EventAccumulator(str(whole / "tensorboard"))
    board.Reload()
    pictures = board.Images("eval/pictures")
    assert [picture.step for picture in pictures] == [4, 8]
    assert (pictures[0].width, pictures[0].height) == (8 * 16, 3 * 16)


def test_the_encoder_is_fine_tuned(shards: Path, tmp_path: Path, whole: Path) -> None:
    """From the run by way of a file: every tensor of the encoder, and a classifier of its own."""
    file = tmp_path / "encoder.safetensors"
    (done,) = run_on_ranks(
        command, 1, "convert", str(whole), str(file), "--to", "native", "--head", "replace"
    )
    assert done.code == 0, done.err
    model = build_model(load_config(whole / "config.yaml").model)
    head = model.head.weight.clone()
    load_weights(model, file, head="replace")
    direct = build_model(load_config(whole / "config.yaml").model)
    load_weights(direct, whole, head="replace")
    assert torch.equal(model.head.weight, head)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, direct.state_dict()[name]), name
    options = ["train.duration=1 steps", f"train.pretrained={file}", "train.pretrained_head=replace"]
    (tuned,) = run_on_ranks(
        command,
        1,
        "train",
        str(CONFIG),
        *overrides(shards, tmp_path / "tuned", *options, "optim.layer_decay=0.8"),
    )
    assert tuned.code == 0, tuned.err
    assert "tensors loaded" in tuned.out


def test_mixed_labels_are_refused(shards: Path, tmp_path: Path) -> None:
    (refused,) = run_on_ranks(command, 1, *line(shards, tmp_path / "run", "data.augment={}"))
    assert refused.code == 2
    assert "data.augment is for task=classification" in refused.err
