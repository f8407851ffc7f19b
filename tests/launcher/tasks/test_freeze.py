"""Frozen parameters stay as they were on every layout, and the rest is trained as by one process."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from launcher.config.load import ConfigError
from launcher.tasks.param_groups import freeze
from parallel.checkpoint.reader import CheckpointReader
from swin_moe import build_model
from tests.accelerator import on_either_processor
from tests.distributed import run_on_ranks
from tests.launcher.running import command, only, overrides, run_alone, steps
from tests.launcher.tasks.layouts import task_line
from tests.models import small_moe, small_swin

FIGURES = ("step", "loss", "aux_loss", "grad_norm", "dropped_fraction")
STEPS = 4
LAYOUTS = [
    pytest.param(["parallel.zero_stage=0", "parallel.ep_size=2"], marks=pytest.mark.slow),
    pytest.param(["parallel.zero_stage=1", "parallel.ep_size=1"], marks=pytest.mark.long),
    ["parallel.zero_stage=2", "parallel.ep_size=2"],
    *on_either_processor(["parallel.zero_stage=3", "parallel.ep_size=2"]),
]


def line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    brief = (f"train.duration={STEPS} steps", "checkpoint.every=2 steps", "train.eval_every=null")
    return task_line(overrides(shards, run_dir, *brief, *more))


def masters(run: Path, step: int) -> dict[str, torch.Tensor]:
    stored = CheckpointReader(run / "checkpoints" / f"step-{step:08d}")
    return {name: stored[full] for name, full in stored.kind("master").items()}


@pytest.fixture(
    scope="module",
    params=["experts", *(pytest.param(word, marks=pytest.mark.slow) for word in ("moe", "layers.0.*"))],
)
def alone(
    request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """One rank, stage 0, with something frozen."""
    path = tmp_path_factory.mktemp("frozen") / "run"
    options = [f"optim.freeze=['{request.param}']", "parallel.zero_stage=0"]
    run_alone(*line(shards, path, *options))
    return request.param, path


def test_what_is_frozen_stays_and_the_rest_moves(alone: tuple[str, Path]) -> None:
    word, path = alone
    before, after = masters(path, 2), masters(path, 4)
    marks = {"experts": (".experts.",), "moe": (".experts.", ".router."), "layers.0.*": ("layers.0.",)}[word]
    for name, tensor in after.items():
        frozen = any(mark in name for mark in marks)
        assert torch.equal(tensor, before[name]) == frozen, name


@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
def test_every_layout_trains_the_rest_alike(
    shards: Path, tmp_path: Path, alone: tuple[str, Path], layout: list[str]
) -> None:
    word, reference = alone
    outcomes = run_on_ranks(command, 2, *line(shards, tmp_path / "run", f"optim.freeze=['{word}']", *layout))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    for found, wanted in zip(steps(tmp_path / "run"), steps(reference), strict=True):
        assert only(found, FIGURES) == pytest.approx(only(wanted, FIGURES), rel=2e-5)
    for name, tensor in masters(tmp_path / "run", 4).items():
        torch.testing.assert_close(tensor, masters(reference, 4)[name], rtol=1e-3, atol=1e-5)


def test_thawed_on_resume(shards: Path, tmp_path: Path, alone: tuple[str, Path]) -> None:
    """A checkpoint has all names, frozen or not: training goes on with everything, on another layout."""
    word, _ = alone
    run = tmp_path / "run"
    frozen = f"optim.freeze=['{word}']"
    (first,) = run_on_ranks(command, 1, *line(shards, run, frozen, "train.duration=2 steps"))
    assert first.code == 0, first.err
    again = line(shards, run, "parallel.zero_stage=2", "parallel.ep_size=2")
    outcomes = run_on_ranks(command, 2, *again, "--allow-change")
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    moved = masters(run, 4)
    assert not any(torch.equal(tensor, moved[name]) for name, tensor in masters(run, 2).items())


MODEL = small_swin(image_size=16, depths=(1, 1), moe=small_moe(blocks=((), (0,))))


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        (["backbone"], {"head.weight", "head.bias"}),
        (
            ["moe", "layers.0.*", "patch_embed.*", "layers.1.merge.*", "*attention*", "*norm*"],
            {"head.weight", "head.bias"},
        ),
    ],
)
def test_words_and_patterns(patterns: list[str], trained: set[str]) -> None:
    model = build_model(MODEL)
    freeze(model, patterns)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["expert"], "did you mean experts"),
        (["*"], "leaves nothing to train"),
        (["layer.0.*"], "matches no parameter"),
    ],
)
def test_patterns_that_make_no_sense(patterns: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        freeze(build_model(MODEL), patterns)


def test_experts_of_a_dense_model() -> None:
    """The word is not suggested in its own place."""
    with pytest.raises(ConfigError, match="matches no parameter") as refused:
        freeze(build_model(replace(MODEL, moe=None)), ["experts"])
    assert "did you mean experts" not in str(refused.value)


def test_nothing_is_frozen_by_default() -> None:
    model = nn.Linear(2, 2)
    assert freeze(model, ()) == []
    assert all(parameter.requires_grad for parameter in model.parameters())
