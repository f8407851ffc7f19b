"""Sessions of a run are written down, and a crash loop is seen in them."""

import json
from pathlib import Path

import pytest

from launcher.errors import CrashLoopError
from launcher.exit_codes import ExitCode
from launcher.rundir.crash_report import read_crash_reports, write_crash_report
from launcher.rundir.directory import RunDirectory
from launcher.rundir.history import all_sessions
from launcher.rundir.sessions import Sessions


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "checkpoints").mkdir()
    return RunDirectory(tmp_path)


def session(run: RunDirectory, code: int | None, *, reset: bool = False) -> None:
    """One that ended so; None was killed."""
    sessions = Sessions(run)
    sessions.begin(2, reset=reset)
    if code is not None:
        sessions.end(code, f"reason {code}", 3)


def commit(run: RunDirectory, step: int) -> None:
    path = run.checkpoints / f"step-{step:08d}"
    path.mkdir()
    (path / "manifest.json").write_text("{}")
    (run.checkpoints / "latest").write_text(path.name)


def is_refused(run: RunDirectory, budget: int) -> bool:
    try:
        Sessions(run).check(budget)
    except CrashLoopError:
        return True
    return False


def test_crashes_in_a_row_without_a_checkpoint_count(run: RunDirectory) -> None:
    assert not is_refused(run, 1)
    session(run, None)
    session(run, ExitCode.BUG)
    assert is_refused(run, 2)
    assert not is_refused(run, 3)
    assert not is_refused(run, 0)
    with pytest.raises(
        CrashLoopError, match="last 2 sessions ended without a checkpoint after step 0; .*reason 1"
    ):
        Sessions(run).check(2)


@pytest.mark.parametrize("code", [ExitCode.FINISHED, ExitCode.STOPPED])
def test_what_is_no_crash_ends_the_row(run: RunDirectory, code: int) -> None:
    for each in (None, code, None):
        session(run, each)
    assert not is_refused(run, 2)
    session(run, ExitCode.DIVERGED)
    assert is_refused(run, 2)


def test_progress_ends_the_row(run: RunDirectory) -> None:
    session(run, None)
    session(run, None)
    commit(run, 7)
    assert not is_refused(run, 1)
    session(run, None)
    assert is_refused(run, 1)


def test_a_reset_forgets(run: RunDirectory) -> None:
    for _ in range(3):
        session(run, None)
    Sessions(run).check(3, reset=True)
    session(run, None, reset=True)
    assert not is_refused(run, 2)
    session(run, None)
    assert is_refused(run, 2)


def test_what_the_user_can_correct_leaves_no_trace(run: RunDirectory) -> None:
    session(run, ExitCode.USER_ERROR)
    assert not (run.path / "sessions.jsonl").exists()
    session(run, ExitCode.DIVERGED)
    before = (run.path / "sessions.jsonl").read_text()
    session(run, ExitCode.USER_ERROR)
    assert (run.path / "sessions.jsonl").read_text() == before


def test_the_next_session_says_how_a_killed_one_ended(run: RunDirectory) -> None:
    session(run, None)
    write_crash_report(run, 1, ExitCode.OUT_OF_MEMORY, "MemoryShortError: rank 1", 3)
    session(run, ExitCode.FINISHED)
    assert [(each["code"], each["reason"]) for each in all_sessions(run)] == [
        (84, "MemoryShortError: rank 1"),
        (0, "reason 0"),
    ]
    assert not read_crash_reports(run)


def test_a_line_that_a_kill_cut_short(run: RunDirectory) -> None:
    session(run, None)
    with (run.path / "sessions.jsonl").open("a") as file:
        file.write('{"event": "st\n')
    session(run, ExitCode.HANG)
    assert is_refused(run, 2)
    last = json.loads((run.path / "sessions.jsonl").read_text().splitlines()[-1])
    assert (last["code"], last["reason"], last["step"], last["committed"]) == (81, "reason 81", 3, 0)
