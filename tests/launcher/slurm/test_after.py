"""What follows the end of a Slurm job's step: requeued, or not and why."""

import os
from pathlib import Path
from unittest import mock

import pytest

from launcher.exit_codes import ExitCode
from launcher.rundir.history import all_sessions, append
from launcher.rundir.paths import RunFiles
from launcher.slurm import epilogue
from launcher.slurm.epilogue import Circumstances, decide
from launcher.slurm.status import as_json, describe

GOES_ON = (ExitCode.STOPPED, ExitCode.LOST_RANK, ExitCode.HANG, ExitCode.HARDWARE)


@pytest.mark.parametrize("sessions_without_progress", [0, 4, 5, 6])
@pytest.mark.parametrize("requeues", [0, 2, 3, 4])
@pytest.mark.parametrize("cancelled", ["", "cancelled on request"])
def test_the_decision(cancelled: str, requeues: int, sessions_without_progress: int) -> None:
    """A budget of 5 sessions without a checkpoint, a limit of 3 requeues."""
    now = Circumstances(
        cancelled=cancelled,
        requeues=requeues,
        limit=3,
        sessions_without_progress=sessions_without_progress,
        budget=5,
    )
    for code in (*ExitCode, 7, 137):
        status, text = decide(code, now)
        if code == ExitCode.FINISHED:
            assert (status, text) == (0, "nothing follows")
        elif code not in GOES_ON:
            assert status == code
            assert text.startswith("not requeued: ")
        elif not cancelled and requeues < 3 and sessions_without_progress < 5:
            assert (status, text) == (75, f"requeued ({requeues + 1} of 3)")
        elif not cancelled and sessions_without_progress >= 5:
            assert status == ExitCode.CRASH_LOOP
            assert f"{sessions_without_progress} sessions in a row left no new checkpoint" in text
        else:
            assert status == (ExitCode.NOT_REQUEUED if code == ExitCode.STOPPED else code)
            assert text.startswith(f"not requeued: {cancelled or 'the limit of 3 requeues'}")
        assert (status == 75) == text.startswith("requeued")


def test_no_budget_is_no_limit() -> None:
    assert decide(80, Circumstances(limit=1, sessions_without_progress=99))[0] == ExitCode.STOPPED


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    """Of job 12, requeued once, which squeue says is RUNNING."""
    (tmp_path / "bin").mkdir()
    answer(tmp_path, "echo RUNNING")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    (tmp_path / "run/slurm").mkdir(parents=True)
    return RunFiles(tmp_path / "run")


def answer(path: Path, line: str) -> None:
    (path / "bin/squeue").write_text(f"#!/bin/sh\n[ $2 = --jobs=12 ] || exit 9\n{line}\n")
    (path / "bin/squeue").chmod(0o755)


def begun(run: RunFiles, restarts: int = 1) -> None:
    job = {"id": "12", "restarts": restarts}
    append(run, {"event": "start", "from_step": 0, "ranks": 2, "pid": 1, "job": job, "crash_budget": 2})


def ends(run: RunFiles, code: int, said: str = "") -> int:
    (run.slurm / "said").write_text(said)
    return epilogue.main([str(run.path), "--code", str(code), "--srun-stderr", str(run.slurm / "said")])


def test_a_lost_rank_is_requeued_until_the_budget_is_used_up(
    run: RunFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "session {} ended: lost rank 1 (node n2): killed by SIGKILL; {}\n"
    begun(run)
    assert ends(run, 137, "srun: error: n2: task 1: Killed\n") == ExitCode.STOPPED
    assert capsys.readouterr().out == line.format(1, "requeued (2 of 50)")
    begun(run)
    assert ends(run, 137, "srun: error: n2: task 1: Killed\n") == ExitCode.CRASH_LOOP
    assert capsys.readouterr().out.startswith(line.format(2, "not requeued: 2 sessions in a row left")[:-1])


def test_stops_in_a_row_without_a_step_do_not_go_on_for_ever(run: RunFiles) -> None:
    for status in (ExitCode.STOPPED, ExitCode.CRASH_LOOP):
        begun(run)
        append(run, {"event": "end", "code": 75, "reason": "Stopped: x"})
        assert ends(run, 75) == status


@pytest.mark.parametrize(
    ("squeue", "status"),
    [
        ("echo RUNNING", ExitCode.STOPPED),
        ("echo COMPLETING", ExitCode.NOT_REQUEUED),
        ("echo CANCELLED", ExitCode.NOT_REQUEUED),
        ("exit 1", ExitCode.STOPPED),  # a controller that does not answer
    ],
)
def test_what_slurm_has_decided_stands(run: RunFiles, tmp_path: Path, squeue: str, status: int) -> None:
    answer(tmp_path, squeue)
    begun(run)
    append(run, {"event": "end", "code": 75, "reason": "Stopped: x"})
    assert ends(run, 75) == status


def test_errors_of_srun_after_a_stop_are_explained(run: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    begun(run)
    append(run, {"event": "end", "code": 75, "reason": "Stopped: x"})
    ends(run, 75, "srun: error: n1: task 0: Exited with exit code 75\n")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "the errors of srun and slurmstepd above are part of a stop on request: the run is saved"
    assert second.startswith("session 1 ended: Stopped: x; ")


def test_what_was_cancelled_is_not_requeued(run: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    begun(run)
    run.cancelled.touch()
    assert ends(run, 137) == ExitCode.LOST_RANK
    assert "not requeued: cancelled on request" in capsys.readouterr().out


def test_a_session_that_never_began(run: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    """The last session on record is of the start before; a user's error is none, and `status` tells it."""
    begun(run, restarts=0)
    append(run, {"event": "end", "code": 75, "reason": "Stopped: x"})
    run.log.write_text("XError: earlier\nPreflightError: shards: rank 0 cannot\nsrun: error: x\n")
    assert ends(run, 2, "srun: error: n1: task 0: Exited with exit code 2\n") == ExitCode.USER_ERROR
    assert "start refused: PreflightError: shards: rank 0 cannot; not requeued" in capsys.readouterr().out
    assert as_json(run)["state"] == "refused"
    assert "  the last start was refused: PreflightError: shards: rank 0 cannot\n" in describe(run)
    assert [each["code"] for each in all_sessions(run)] == [75]
    assert ends(run, 137, "srun: error: n1: task 0: Killed\n") == ExitCode.CRASH_LOOP  # a budget of 2
    assert [each["code"] for each in all_sessions(run)] == [75, 80]


def test_a_run_that_cannot_be_written_still_gets_its_decision(run: RunFiles) -> None:
    begun(run)
    with mock.patch("launcher.rundir.postmortem.append", side_effect=OSError(28, "No space left on device")):
        assert epilogue.main([str(run.path), "--code", "84"]) == ExitCode.OUT_OF_MEMORY


def test_not_in_a_job(run: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    assert ends(run, 0) == 0
    assert ends(run, 81) == ExitCode.HANG


@pytest.mark.parametrize(("code", "status"), [(0, 0), (75, ExitCode.NOT_REQUEUED), (80, 80)])
def test_garbled_variables_of_the_job(
    code: int,
    status: int,
    run: RunFiles,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The requeues so far cannot be counted, so that the limit could not end them."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "one")
    assert epilogue.main([str(run.path), "--code", str(code)]) == status
    said = capsys.readouterr().out
    assert said.startswith("not requeued: the launcher set no usable SLURM_RESTART_COUNT (got 'one')")
    assert said.count("\n") == 1
