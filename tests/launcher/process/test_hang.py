"""A rank that stands still: named within the stated time, with the collective that the others wait in."""

import re
from pathlib import Path

import pytest

from launcher.exit_codes import ExitCode
from tests.faults import Fault, one_line, run
from tests.launcher.running import steps
from tests.launcher.short_run import line

TIMEOUT_S = 6
PLACE = r"[\w<>]+ \([\w/.-]+\.py:\d+\)"


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stopped_rank_is_named(shards: Path, tmp_path: Path, rank: int) -> None:
    command = line(shards, tmp_path / "run", f"parallel.collective_timeout_s={TIMEOUT_S}")
    ended = run(2, command, Fault("SIGSTOP", rank=rank, step=4), stays=(rank,))
    assert ended[1 - rank].code == ExitCode.HANG
    # what it said last may be some steps old: it speaks several times a second, a step takes less
    silent = rf"rank {rank} has sent no heartbeat for \d+ s; last heartbeat at step \d, in {PLACE}"
    waiting = rf"rank {1 - rank} waits for it in {PLACE} at step 4"
    assert re.search(f"{silent}; {waiting}", one_line(ended, "HangError"))


@pytest.mark.slow
def test_a_rank_that_is_in_no_collective_is_named_and_ends_too(shards: Path, tmp_path: Path) -> None:
    command = line(shards, tmp_path / "run", f"parallel.collective_timeout_s={TIMEOUT_S}", ep_size=4)
    ended = run(4, [*command, "train.micro_batch_size=4"], Fault("sleep", rank=2, step=4))
    assert [rank.code for rank in ended] == [ExitCode.HANG] * 4
    text = one_line(ended, "HangError")
    assert re.search(
        r"rank 2 is at step 4, for \d+ s in train \(launcher/training/trainer.py:\d+\); "
        r"ranks 0, 1, 3 wait for it in ",
        text,
    )


@pytest.mark.slow
def test_data_that_is_slow_is_no_hang(shards: Path, tmp_path: Path) -> None:
    """A rank that waits for its data has data.retry_s on top, and says at last what is wrong itself."""
    options = ("parallel.collective_timeout_s=5", "train.duration=4 steps")
    ended = run(2, line(shards, tmp_path / "run", *options), Fault("slow_data", rank=1, step=2))
    assert [rank.code for rank in ended] == [0, 0], ended[0].err + ended[1].err
    assert len(steps(tmp_path / "run")) == 4
