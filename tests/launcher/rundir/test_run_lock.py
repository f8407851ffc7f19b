"""Who holds a run directory: the living are respected, the dead are followed, with a line."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.rundir import run_lock
from launcher.rundir.run_lock import STALE_S, RunLock, RunLockedError
from parallel.ranks.identity import identity, start_time

OTHER = {"host": "elsewhere", "pid": 1, "start": "1"}


def dead_process() -> int:
    """The id of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_taken_released_and_taken_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = RunLock(tmp_path / "lock")
    first.take()
    assert identity().items() <= json.loads((tmp_path / "lock").read_text()).items()
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} on "):
        RunLock(tmp_path / "lock").take()
    first.release()
    assert (tmp_path / "lock").read_text() == ""
    RunLock(tmp_path / "lock").take()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("start", ["12345", None])
def test_a_dead_owner_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], start: str | None
) -> None:
    """Its id is gone, or is that of another process by now."""
    pid = os.getppid() if start else dead_process()
    (tmp_path / "lock").write_text(
        json.dumps({"host": socket.gethostname(), "pid": pid, "start": start or "7"})
    )
    RunLock(tmp_path / "lock").take()
    wanted = f"was locked by process {pid} on {socket.gethostname()}; that process has ended: going on\n"
    assert capsys.readouterr().err.endswith(wanted)


def test_a_living_owner_whose_lock_the_file_system_does_not_carry(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = identity() | {"pid": process.pid, "start": start_time(process.pid)}
        (tmp_path / "lock").write_text(json.dumps(owner))
        with pytest.raises(RunLockedError, match=f"process {process.pid} on "):
            RunLock(tmp_path / "lock").take()
        process.communicate(b"\n")


def test_an_owner_elsewhere_lives_as_long_as_its_lease(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps(OTHER))
    with pytest.raises(RunLockedError, match="elsewhere"):
        RunLock(path).take()
    os.utime(path, (time.time() - STALE_S - 5,) * 2)
    held = RunLock(path)
    held.take()
    assert "nobody touched it for 30" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    held.release()


@pytest.mark.parametrize(
    ("answer", "is_dead"),
    [
        ("echo RUNNING", False),
        ("echo PENDING", True),  # requeued, and not yet started
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", True),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", False),  # the lease decides, and is fresh
    ],
)
def test_slurm_knows_whether_the_owner_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, is_dead: bool
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$2" = --jobs=42 ] || exit 9\n{answer}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "lock"
    path.write_text(json.dumps({**OTHER, "job": {"id": "42", "restarts": 0}}))
    if is_dead:
        RunLock(path).take()
    else:
        with pytest.raises(RunLockedError):
            RunLock(path).take()


def test_this_very_job_was_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({**OTHER, "job": {"id": "42", "restarts": 0}}))
    monkeypatch.setattr(run_lock, "slurm_job", lambda: {"id": "42", "restarts": 1})
    RunLock(path).take()
    assert json.loads(path.read_text())["job"] == {"id": "42", "restarts": 1}


def test_a_lock_that_the_file_system_keeps_for_the_dead(tmp_path: Path) -> None:
    """Another process holds the flock, while the record is of one that is long gone."""
    path = tmp_path / "lock"
    path.write_text(json.dumps({**identity(), "pid": dead_process(), "start": "7"}))
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        RunLock(path).take()
        assert (tmp_path / "lock.stale").exists()
        process.communicate(b"\n")
