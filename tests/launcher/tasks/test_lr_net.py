"""Runs whose model has local relations: an LR-Net with its batch norms, and Swin blocks with experts.

Any layout, a kill, what `check` refuses, segmentation and detection on an LR-Net, weights in and out.
"""

import json
from pathlib import Path

import pytest
import torch

from launcher import load
from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.validation.rules import problems
from parallel.checkpoint.reader import CheckpointReader
from tests.distributed import run_on_ranks
from tests.launcher.running import (
    CONFIG,
    EXACT,
    command,
    commands,
    evaluations,
    only,
    overrides,
    run_alone,
    steps,
)
from tests.launcher.tasks.layouts import (
    assert_same_gradients,
    assert_same_run,
    kill_and_resume,
    plain_sgd,
    results,
    stored,
)
from tests.launcher.tasks.relation_models import MODELS

STEPS, LR = 3, 0.05


def line(model: str, shards: Path, run_dir: Path, *more: str) -> list[str]:
    """A short run of a model, whose gradients its weights tell."""
    return [
        "train",
        str(CONFIG),
        *overrides(shards, run_dir, *MODELS[model], *plain_sgd(LR, STEPS), *more),
        "--resume",
        "auto",
    ]


def config_of(*more: str) -> RunConfig:
    """The configuration of a run of an LR-Net."""
    return load_config(CONFIG, [*overrides(Path("data"), "run", *MODELS["lr_net"], *more)])


@pytest.fixture(scope="module", params=MODELS)
def alone(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each model on one rank: one micro-batch of 8."""
    path = tmp_path_factory.mktemp(request.param) / request.param
    run_alone(*line(request.param, shards, path, "train.micro_batch_size=8"))
    return path


@pytest.mark.parametrize(
    ("ranks", "stage", "micro"),
    [
        (2, 1, 4),
        pytest.param(1, 0, 4, marks=pytest.mark.slow),  # two micro-batches
        pytest.param(2, 3, 4, marks=pytest.mark.slow),
        pytest.param(2, 2, 4, marks=pytest.mark.slow),
    ],
)
def test_every_layout_trains_alike(
    alone: Path, shards: Path, tmp_path: Path, ranks: int, stage: int, micro: int
) -> None:
    """Losses within 1e-5, gradients of the second step within 1e-4, running statistics alike."""
    more = [f"parallel.zero_stage={stage}", f"train.micro_batch_size={micro}"]
    more += [] if alone.name == "lr_net" else [f"parallel.ep_size={ranks}"]
    outcomes = run_on_ranks(command, ranks, *line(alone.name, shards, tmp_path / "run", *more))
    assert [outcome.code for outcome in outcomes] == [0] * ranks, outcomes[0].err
    for record, other in zip(steps(tmp_path / "run"), steps(alone), strict=True):
        assert only(record, EXACT[:5]) == pytest.approx(only(other, EXACT[:5]), rel=1e-5)
    assert_same_gradients(tmp_path / "run", alone, LR)
    if alone.name == "lr_net":
        found, wanted = (stored(run, STEPS, "buffer") for run in (tmp_path / "run", alone))
        assert float((wanted["layers.0.blocks.0.bn2.running_mean"]).abs().max()) > 1e-3
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_batch_norms_that_span_ranks(shards: Path, tmp_path: Path) -> None:
    """Groups of 8 images: of one rank, or of two ranks with 4 each."""
    group = "model.lr_net.norm_group_images=8"
    for ranks, micro in ((1, 8), (2, 4)):
        run = tmp_path / str(ranks)
        words = line("lr_net", shards, run, group, f"train.micro_batch_size={micro}")
        outcomes = run_on_ranks(command, ranks, *words)
        assert [outcome.code for outcome in outcomes] == [0] * ranks, outcomes[0].err
    assert_same_gradients(tmp_path / "2", tmp_path / "1", LR)


def test_killed_and_resumed_is_the_same_run(alone: Path, shards: Path, tmp_path: Path) -> None:
    """Bit for bit, with the running statistics of the batch norms."""
    words = line(alone.name, shards, tmp_path / "killed", "train.micro_batch_size=8")
    kill_and_resume(words)
    assert_same_run(tmp_path / "killed", alone, EXACT, STEPS, ("master", "buffer"))


def test_evaluation_and_weights_go_round(alone: Path, tmp_path: Path) -> None:
    """`eval` gives what training gave, with k-NN; exported weights are the checkpoint's."""
    outcome, features = run_on_ranks(
        commands, 2, [["eval", str(alone)], ["eval", str(alone), "--knn", "5", "--few-shot", "1"]]
    )[0]
    assert outcome.code == features.code == 0, features.err
    found = json.loads((results(alone) / "evaluation.json").read_text())
    assert found["modes"][0]["top1"] == evaluations(alone)[-1]["eval_top1"]
    assert "5-NN top-1" in features.out
    out = tmp_path / "model.safetensors"
    exported = run_alone("export", str(alone), str(out))
    assert out.is_file(), exported.err
    model, trained = load(str(out)).model, load(str(alone)).model
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x).logits, trained(x).logits)
    refused = run_on_ranks(command, 1, "export", str(alone), str(tmp_path / "t"), "--to", "timm")[0]
    assert refused.code == 2
    assert "--to timm is for swin, swinv2" in refused.err


def test_checkpoints_of_an_lr_net_hold_its_statistics(alone: Path) -> None:
    reader = CheckpointReader(alone / "checkpoints" / f"step-{STEPS:08d}")
    names = reader.kind("buffer")
    assert any("bn2.running_var" in name for name in names) == (alone.name == "lr_net")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["train.compile=true"], "train.compile compiles blocks of a Swin: set it to false for an LR-Net"),
        (["model.lr_net.norm_group_images=3"], "model.lr_net.norm_group_images (3) must divide train.micro"),
        (["task=simmim", "data.augment=null"], "task=simmim trains a Swin and no LR-Net: set model.lr_net"),
    ],
)
def test_check_refuses(more: list[str], message: str) -> None:
    assert any(message in problem for problem in problems(config_of(*more), data=False))


def test_check_refuses_groups_that_no_ranks_hold() -> None:
    config = config_of("model.lr_net.norm_group_images=16", "train.micro_batch_size=8")
    assert problems(config, 2, data=False) == []
    found = problems(config, 1, data=False)  # two micro-batches a step
    assert any("model.lr_net.norm_group_images (16) spans 2 ranks" in problem for problem in found)
    frozen = config_of("model.lr_net.norm_group_images=16", "model.lr_net.norm_frozen=true")
    assert problems(frozen, 1, data=False) == []
