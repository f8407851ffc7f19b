"""Which status the parent of the ranks returns, and what it says of a rank that cannot speak any more."""

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch.distributed as dist

from launcher.exit_codes import ExitCode
from launcher.process import local_launcher
from launcher.process.local_launcher import RankProcesses
from parallel.watchdog.diagnosis import DIAGNOSIS
from parallel.watchdog.watch import NCCL


def processes_of(*codes: str, **options: Any) -> RankProcesses:
    """Ranks that run a line of Python each."""
    ranks = [
        subprocess.Popen([sys.executable, "-c", f"import os, sys, time; {code}"], stdin=subprocess.PIPE)
        for code in codes
    ]
    return RankProcesses(dist.HashStore(), ranks, **options)


def dies(number: signal.Signals) -> str:
    return f"os.kill(os.getpid(), {number})"


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        (("", ""), ExitCode.FINISHED),
        (
            ("sys.exit(80)", "time.sleep(0.3); sys.exit(84)"),
            ExitCode.OUT_OF_MEMORY,
        ),  # the first only suffered
        (("sys.exit(81)", "sys.exit(81)"), ExitCode.HANG),
        ((dies(signal.SIGKILL), "time.sleep(0.2); sys.exit(80)"), ExitCode.LOST_RANK),
        ((dies(signal.SIGABRT), "time.sleep(0.2); sys.exit(80)"), ExitCode.BUG),
    ],
)
def test_the_status_is_that_of_the_rank_that_caused_the_end(codes: tuple[str, ...], status: int) -> None:
    assert processes_of(*codes).wait() == status


def test_of_ranks_that_did_not_suffer_the_first_counts() -> None:
    ranks = processes_of("sys.stdin.read(); sys.exit(82)", "sys.exit(1)")

    def let_the_other_end() -> None:
        while 1 not in ranks.ended:
            time.sleep(0.01)
        assert ranks.ranks[0].stdin
        ranks.ranks[0].stdin.close()

    letting = threading.Thread(target=let_the_other_end)
    letting.start()
    assert ranks.wait() == ExitCode.BUG
    letting.join()


def test_with_nccl_an_aborted_rank_has_lost_another() -> None:
    """NCCL's watchdog aborts a rank whose peer is gone; without NCCL an abort is a crash."""
    ranks = processes_of(dies(signal.SIGABRT), "time.sleep(0.2); sys.exit(80)")
    ranks.store.set(NCCL, "")
    assert ranks.wait() == ExitCode.LOST_RANK


def test_the_dead_rank_is_named_with_its_last_place(capsys: pytest.CaptureFixture[str]) -> None:
    ranks = processes_of("", dies(signal.SIGKILL))
    ranks.store.set("beat/1", json.dumps({"step": 7, "place": "f (a.py:1)"}))
    assert ranks.wait() == ExitCode.LOST_RANK
    line = "lost rank 1: killed by SIGKILL; last heartbeat at step 7, in f (a.py:1)"
    assert capsys.readouterr().err == f"LostRankError: {line}\n"
    assert json.loads(ranks.store.get(DIAGNOSIS)) == {"code": 80, "line": line}


def test_the_kernel_killed_a_rank_for_want_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    ranks = processes_of("", dies(signal.SIGKILL), count_kills=itertools.count().__next__)
    assert ranks.wait() == ExitCode.OUT_OF_MEMORY
    assert "killed by SIGKILL: the machine is out of memory; lower" in capsys.readouterr().err


def test_what_does_not_end_is_killed_and_its_end_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(local_launcher.PATIENCE_S, ExitCode.HANG, 0.3)
    assert processes_of("sys.exit(81)", "time.sleep(60)").wait() == ExitCode.HANG


def test_a_request_before_the_ranks_listened_is_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    ranks = processes_of(dies(signal.SIGTERM), "time.sleep(0.1); sys.exit(80)", request=signal.SIGTERM)
    assert ranks.wait() == ExitCode.STOPPED
    assert capsys.readouterr().err == ""
