"""A request to stop that comes while the program is being imported waits until it listens."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

import launcher.cli.program
from launcher.exit_codes import ExitCode
from tests.launcher.running import descendants, start, steps
from tests.launcher.short_run import line


def _is_blocked(pid: int, number: int) -> bool:
    """Whether a process blocks a signal, in Linux's own words."""
    status = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigBlk"], 16) >> (number - 1) & 1)


def _wait_until_blocked(pid: int) -> None:
    deadline_s = time.monotonic() + 30
    while not _is_blocked(pid, signal.SIGUSR1):
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGUSR1, marks=pytest.mark.slow), signal.SIGTERM])
def test_before_the_imports_and_until_a_command_that_is_no_rank_runs(
    tmp_path: Path, number: signal.Signals
) -> None:
    program = start("models", cwd=tmp_path)
    _wait_until_blocked(program.pid)
    assert "torch" not in Path(f"/proc/{program.pid}/maps").read_text()
    os.kill(program.pid, number)
    program.communicate(timeout=60)
    assert program.returncode == -number


def test_a_library_that_is_imported_blocks_nothing() -> None:
    assert launcher.cli.program
    assert not {signal.SIGUSR1, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [(), ("--nproc", "2")])
def test_a_request_right_after_the_start_stops_the_run_after_its_first_step(
    shards: Path, tmp_path: Path, nproc: tuple[str, ...]
) -> None:
    size = 2 if nproc else 1
    program = start(*line(shards, tmp_path / "run", ep_size=size), *nproc, cwd=tmp_path)
    _wait_until_blocked(program.pid)
    os.kill(program.pid, signal.SIGUSR1)
    _, err = program.communicate(timeout=120)
    assert program.returncode == ExitCode.STOPPED, err
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000001\n"
    assert len(steps(tmp_path / "run")) == 1
    assert not descendants(program.pid)
    last = json.loads((tmp_path / "run/sessions.jsonl").read_text().splitlines()[-1])
    assert last["code"] == ExitCode.STOPPED
