"""What befalls one rank: one clear line, its own exit status, all ranks end in time, and an exact resume."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from launcher.exit_codes import ExitCode
from tests.faults import Fault, one_line, run
from tests.launcher.running import descendants, is_alive, start, steps
from tests.launcher.short_run import assert_same, line


def assert_goes_on(shards: Path, path: Path, reference: Path) -> None:
    """The run resumes from its last checkpoint and ends as the one that nothing befell."""
    assert [rank.code for rank in run(2, line(shards, path))] == [0, 0]
    assert_same(path, reference)


@pytest.mark.parametrize("at", ["step", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_a_killed_rank_is_named_and_the_others_end(
    shards: Path, tmp_path: Path, reference: Path, at: str
) -> None:
    step = {"step": 6, "evaluate": 10}[at]
    ended = run(2, line(shards, tmp_path / "run"), Fault("SIGKILL", rank=1, at=at, step=step))
    assert [rank.code for rank in ended] == [ExitCode.LOST_RANK, -signal.SIGKILL]
    assert ended[0].after_s - ended[1].after_s < 15
    assert re.search(r"lost rank 1: its process ended without a message", one_line(ended, "LostRankError"))
    assert_goes_on(shards, tmp_path / "run", reference)


@pytest.mark.slow
def test_the_rank_that_writes_is_killed_just_before_the_commit(
    shards: Path, tmp_path: Path, reference: Path
) -> None:
    ended = run(2, line(shards, tmp_path / "run"), Fault("SIGKILL", rank=0, at="commit", step=8))
    assert [rank.code for rank in ended] == [-signal.SIGKILL, ExitCode.LOST_RANK]
    assert "lost rank 0" in one_line(ended, "LostRankError")
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000004\n"
    assert_goes_on(shards, tmp_path / "run", reference)


def test_a_rank_out_of_memory_says_what_to_lower(shards: Path, tmp_path: Path, reference: Path) -> None:
    ended = run(2, line(shards, tmp_path / "run"), Fault("memory", rank=1, step=6))
    assert [rank.code for rank in ended] == [ExitCode.LOST_RANK, ExitCode.OUT_OF_MEMORY]
    text = one_line(ended, "MemoryShortError")
    assert re.search(r"rank 1 is out of memory at step 6, phase train, having used \d\.\d\d GiB", text)
    assert "lower train.micro_batch_size (8)" in text
    assert "LostRankError" not in ended[0].err  # rank 1 has said it
    assert_goes_on(shards, tmp_path / "run", reference)


def test_a_bug_of_one_rank_shows_its_traceback_alone(shards: Path, tmp_path: Path) -> None:
    ended = run(2, line(shards, tmp_path / "run"), Fault("bug", rank=1))
    assert [rank.code for rank in ended] == [ExitCode.LOST_RANK, ExitCode.BUG]
    assert "LookupError: a bug on purpose" in ended[1].err
    assert ended[0].err.count("\n") == 0


@pytest.mark.long
def test_the_last_save_fails(shards: Path, tmp_path: Path, reference: Path) -> None:
    """A stop is asked for, and the disk is full."""
    faults = Fault("SIGTERM", rank=0, step=5), Fault("disk", rank=1, step=5)
    ended = run(2, line(shards, tmp_path / "run"), *faults)
    assert [rank.code for rank in ended] == [ExitCode.SAVE_FAILED] * 2
    text = one_line(ended, "FinalSaveError")
    assert "the state of step 6 is lost" in text
    assert "File too large" in text
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000004\n"
    assert_goes_on(shards, tmp_path / "run", reference)


@pytest.mark.long
def test_two_crashes_without_a_checkpoint_refuse_a_third(shards: Path, tmp_path: Path) -> None:
    command = line(shards, tmp_path / "run", "checkpoint.crash_budget=2")
    for _ in range(2):
        assert [rank.code for rank in run(1, [*command, "parallel.ep_size=1"], Fault("SIGKILL", step=2))] == [
            -9
        ]
    ended = run(2, command)
    assert [rank.code for rank in ended] == [ExitCode.CRASH_LOOP] * 2
    text = one_line(ended, "CrashLoopError")
    assert "the last 2 sessions ended without a checkpoint after step 0; the last: killed" in text
    assert "--reset-crashes" in text
    assert [rank.code for rank in run(2, [*command, "--reset-crashes"])] == [0, 0]


# --- the whole program -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_program_returns_the_status_of_the_rank_that_caused_the_end(
    shards: Path, tmp_path: Path, reference: Path
) -> None:
    program = start(*line(shards, tmp_path / "run"), "--nproc", "2", cwd=tmp_path)
    deadline_s = time.monotonic() + 120
    while not (tmp_path / "run/metrics.jsonl").exists() or len(steps(tmp_path / "run")) < 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    ranks = [pid for pid in descendants(program.pid) if _rank_of(pid) is not None]
    (second,) = [pid for pid in ranks if _rank_of(pid) == "1"]
    os.kill(second, signal.SIGKILL)
    killed_s = time.monotonic()
    _, err = program.communicate(timeout=60)
    assert time.monotonic() - killed_s < 30
    assert program.returncode == ExitCode.LOST_RANK, err
    assert "Traceback" not in err
    (text,) = [text for text in err.splitlines() if text.startswith("LostRankError: ")]
    assert text.startswith("LostRankError: lost rank 1: ")
    assert not any(map(is_alive, ranks))
    last = json.loads((tmp_path / "run/sessions.jsonl").read_text().splitlines()[-1])
    assert last["code"] == ExitCode.LOST_RANK
    assert_goes_on(shards, tmp_path / "run", reference)


def _rank_of(pid: int) -> str | None:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((entry[5:].decode() for entry in entries if entry.startswith(b"RANK=")), None)
