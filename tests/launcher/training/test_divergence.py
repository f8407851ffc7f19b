"""Steps that are not finite: counted and skipped on all ranks, and after so many in a row the end."""

import math
from pathlib import Path

import pytest
import torch

from launcher.errors import DivergedError
from launcher.exit_codes import ExitCode
from launcher.training.nonfinite import GradientSearch, SkippedSteps
from tests.faults import Fault, one_line, run
from tests.launcher.running import steps
from tests.launcher.short_run import line


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("nan_loss", "first at step 5: the loss of rank 1; "),
        pytest.param(
            "nan_gradient",
            "first at step 5: the gradient, at finite losses, and then in the gradient of rank 1; ",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_diverges_stops_and_keeps_its_checkpoint(
    shards: Path, tmp_path: Path, kind: str, where: str
) -> None:
    """Also where the checkpoint of step 4 is still being written when the run ends."""
    options = ("train.max_skipped_steps=3", "parallel.zero_stage=2")
    faults = Fault(kind, rank=1, step=4), Fault("pause", rank=0, at="commit", step=4)  # type: ignore[arg-type]
    ended = run(2, line(shards, tmp_path / "run", *options), *faults)
    assert [rank.code for rank in ended] == [ExitCode.DIVERGED] * 2
    text = one_line(ended, "DivergedError")
    assert text.startswith("DivergedError: 3 steps in a row up to step 7 were not finite, ")
    assert where in text
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000004\n"
    assert [record["skipped_steps"] for record in steps(tmp_path / "run")] == [0, 0, 0, 0, 1, 2]
    assert math.isnan(steps(tmp_path / "run")[4]["loss"]) == (kind == "nan_loss")


def test_only_steps_in_a_row_end_a_run() -> None:
    skipped = SkippedSteps(2, total=7)
    for step, bad in enumerate([True, False, True, False], 1):
        skipped.count(step, bad)
    assert skipped.total == 9
    skipped.count(5, False, loss_ranks=[3])  # an infinite loss whose gradient is finite counts too
    with pytest.raises(
        DivergedError, match="2 steps in a row up to step 6 .* first at step 5: the loss of rank 3"
    ):
        skipped.count(6, True, loss_ranks=[0])


def test_no_limit() -> None:
    skipped = SkippedSteps(0)
    for step in range(50):
        skipped.count(step, True)
    assert skipped.total == 50


def test_the_search_looks_at_gradients_only_while_it_is_on() -> None:
    search, model = GradientSearch(module := torch.nn.Linear(2, 1)), module
    (model(torch.ones(1, 2)) * math.nan).sum().backward()
    assert not search.take()
    search.turn(True)
    model(torch.ones(1, 2)).sum().backward()
    assert not search.take()
    (model(torch.ones(1, 2)) * math.nan).sum().backward()
    assert search.take()
    assert not search.take()
    search.turn(False)
    (model(torch.ones(1, 2)) * math.nan).sum().backward()
    assert not search.take()
