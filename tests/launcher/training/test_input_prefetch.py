"""The next batch's inputs, made before the step: the run is the same, and goes on after a kill."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from data_shards.errors import DataError
from launcher.training.input_prefetch import InputPrefetcher
from tests.distributed import RankError, run_on_ranks
from tests.launcher.running import (
    CONFIG,
    EXACT,
    EXACT_EVAL,
    Outcome,
    command,
    evaluations,
    only,
    overrides,
    steps,
)

STEPS, KILLED = 6, 4


def line(shards: Path, run: Path, *more: str) -> list[str]:
    schedule = (f"train.duration={STEPS} steps", "train.eval_every=3 steps", "checkpoint.every=2 steps")
    options = (*schedule, "checkpoint.keep_last=9", "checkpoint.asynchronous=false", *more)
    return ["train", str(CONFIG), "--resume", "auto", *overrides(shards, run, *options)]


def looking(arguments: list[str], kill: tuple[str, int] | None = None) -> Outcome:
    """Run as on a GPU, where the next batch is taken before a step ends."""

    def hook(event: str, trainer: Any) -> None:
        trainer.prefetch_inputs = True

    with mock.patch.object(
        InputPrefetcher, "prefetch", autospec=True, side_effect=InputPrefetcher.prefetch
    ) as looks:
        outcome = command(*arguments, kill=kill, hook=hook)
    assert looks.call_count > 0
    return outcome


@pytest.mark.parametrize("micro", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_a_run_that_looks_ahead_is_the_same_bit_for_bit(shards: Path, tmp_path: Path, micro: int) -> None:
    """With and without accumulation; the one that looks ahead is killed and goes on."""
    size = f"train.micro_batch_size={micro}"
    plain, ahead = tmp_path / "plain", tmp_path / "ahead"
    assert run_on_ranks(command, 1, *line(shards, plain, size))[0].code == 0
    with pytest.raises(RankError):
        run_on_ranks(looking, 1, line(shards, ahead, size), ("step", KILLED + 1))
    assert run_on_ranks(looking, 1, line(shards, ahead, size))[0].code == 0
    last = {record["step"]: record for record in steps(ahead)}
    assert [only(record, EXACT) for record in steps(plain)] == [
        only(last[i], EXACT) for i in range(1, STEPS + 1)
    ]
    found = {record["step"]: only(record, EXACT_EVAL) for record in evaluations(ahead)}
    assert [only(record, EXACT_EVAL) for record in evaluations(plain)] == [*found.values()]


def test_the_state_is_without_the_batch_that_is_held() -> None:
    stream: Any = Numbers(3)
    ahead = InputPrefetcher(stream, lambda batch: f"inputs of {batch}")
    assert (next(ahead), ahead.inputs(0)) == (0, "inputs of 0")
    ahead.prefetch()
    assert stream.taken == 2
    assert (ahead.state_dict(), ahead.counts()) == ({"samples": 1}, {"bytes": 1})
    assert (next(ahead), ahead.inputs(1)) == (1, "inputs of 1")
    assert (ahead.state_dict(), ahead.counts()) == ({"samples": 2}, {"bytes": 2})


def test_bad_data_of_the_next_step_does_not_end_the_one_under_way() -> None:
    stream: Any = Numbers(1)
    ahead = InputPrefetcher(stream, SimpleNamespace)
    next(ahead)
    ahead.prefetch()
    assert ahead.state_dict() == {"samples": 1}
    with pytest.raises(DataError, match="no more"):
        next(ahead)


class Numbers:
    """A stream of numbers that says how many were taken, and fails at its end."""

    def __init__(self, count: int) -> None:
        self.count, self.taken = count, 0

    def __iter__(self) -> Any:
        while self.taken < self.count:
            self.taken += 1
            yield self.taken - 1
        raise DataError("no more")

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.taken}

    def counts(self) -> dict[str, int]:
        return {"bytes": self.taken}
