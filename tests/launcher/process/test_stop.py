"""A request to stop: the step is finished, the run saved and ended with its own status; resumed exactly."""

import json
import os
import re
import signal
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from launcher.exit_codes import ExitCode
from launcher.process.signals import SAME_S, StopRequest
from launcher.rundir.history import all_sessions
from launcher.rundir.paths import RunFiles, read_json
from tests.faults import Fault, one_line, run
from tests.launcher.running import descendants, is_alive, start, steps
from tests.launcher.short_run import DURATION, assert_same, line


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        (Fault("SIGUSR1", rank=1, step=6), 7),  # one rank is enough; a step at which nothing is due
        (Fault("SIGTERM", rank=0, step=4), 5),  # at step 5 an evaluation is due, which the resumed run makes
        pytest.param(  # Ctrl-C reaches all; a checkpoint is due anyway
            Fault("SIGINT", rank=None, step=7), 8, marks=pytest.mark.slow
        ),
    ],
)
def test_stopped_and_resumed_is_the_same_run(
    shards: Path, tmp_path: Path, reference: Path, fault: Fault, step: int
) -> None:
    ended = run(2, line(shards, tmp_path / "run"), fault)
    assert [rank.code for rank in ended] == [ExitCode.STOPPED] * 2, ended[0].err
    text = one_line(ended, "Stopped")
    assert f"at step {step} of {DURATION}, saved" in text
    assert (tmp_path / "run/checkpoints/latest").read_text() == f"step-{step:08d}\n"
    assert [record["step"] for record in steps(tmp_path / "run")] == list(range(1, step + 1))
    assert not (tmp_path / "run/summary.json").exists()
    assert [rank.code for rank in run(2, line(shards, tmp_path / "run"))] == [0, 0]
    assert_same(tmp_path / "run", reference)
    sessions = [json.loads(text) for text in (tmp_path / "run/sessions.jsonl").read_text().splitlines()]
    assert [record.get("code") for record in sessions] == [None, 75, None, 0]


def test_nobody_goes_before_rank_0_has_written_everything(shards: Path, tmp_path: Path) -> None:
    """Slurm kills all other ranks as soon as the first has ended with a status that is not 0."""
    found: list[dict[str, Any]] = []

    def watch(ranks: list[int]) -> None:
        while is_alive(ranks[1]):
            time.sleep(0.002)
        found.extend(all_sessions(RunFiles(tmp_path / "run")))
        found.append(read_json(tmp_path / "run/progress.json"))

    threads: list[Thread] = []

    def meddle(ranks: list[int]) -> None:
        threads.append(Thread(target=watch, args=(ranks,)))
        threads[0].start()

    ended = run(
        2,
        line(shards, tmp_path / "run"),
        Fault("SIGUSR1", rank=1, step=1),
        Fault("slow_record", rank=0, step=1),
        meddle=meddle,
    )
    threads[0].join()
    assert [rank.code for rank in ended] == [ExitCode.STOPPED] * 2
    session, progress = found
    assert session["code"] == progress["ended"]["code"] == ExitCode.STOPPED
    assert (progress["step"], progress["checkpoint"], progress["total_steps"]) == (2, 2, DURATION)


def test_one_request_that_arrives_twice_and_two_requests() -> None:
    ended: list[int] = []
    with StopRequest(at_once=ended.append) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        assert stop.signal == signal.SIGTERM
        assert ended == []
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(SAME_S)
        assert ended == []
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        assert ended == [signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow  # whole programs, started three times
def test_a_request_to_the_parent_and_another_that_ends_it(
    shards: Path, tmp_path: Path, reference: Path
) -> None:
    arguments = [*line(shards, tmp_path / "run"), "--nproc", "2"]
    program = start(*arguments, cwd=tmp_path)
    _wait_for_steps(tmp_path / "run", 3)
    os.kill(program.pid, signal.SIGTERM)
    _, err = program.communicate(timeout=120)
    assert program.returncode == ExitCode.STOPPED, err
    assert "Traceback" not in err
    made = len(steps(tmp_path / "run"))
    (told,) = re.findall(r"Stopped: on request \(SIGTERM\) at step (\d+) of \d+, saved in [\d.]+ s", err)
    assert int(told) == made < DURATION

    program = start(*arguments, "--resume", "auto", cwd=tmp_path)
    _wait_for_steps(tmp_path / "run", made + 1)
    ranks = descendants(program.pid)
    os.kill(ranks[0], signal.SIGSTOP)  # so that the first request cannot be met
    os.kill(program.pid, signal.SIGTERM)
    time.sleep(SAME_S + 0.2)
    os.kill(program.pid, signal.SIGTERM)
    program.communicate(timeout=30)
    assert program.returncode == 128 + signal.SIGTERM
    assert not any(map(is_alive, ranks))

    assert [rank.code for rank in run(2, line(shards, tmp_path / "run"))] == [0, 0]
    assert_same(tmp_path / "run", reference)


def _wait_for_steps(path: Path, count: int) -> None:
    deadline_s = time.monotonic() + 120
    while not (path / "metrics.jsonl").exists() or len(steps(path)) < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
