"""How a session ended, read off what its ranks, its heartbeat and srun left."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.exit_codes import ExitCode
from launcher.rundir.crash_report import clear_crash_reports, read_crash_reports, write_crash_report
from launcher.rundir.history import all_sessions, append
from launcher.rundir.paths import RunFiles, read_json, replace_json
from launcher.rundir.postmortem import Ending, cause, close_last, examine
from launcher.rundir.srun_log import Event, events

PLACE = "all_to_all_single (parallel/ranks/collectives.py:55)"
LOST = (
    f"LostRankError: lost rank 1: its process ended without a message; last heartbeat at step 7, in {PLACE}"
)
LAST = f"; last heartbeat at step 7, in {PLACE}"
HUNG = f"rank 1 has sent no heartbeat for 5 s{LAST}; rank 0 waits for it in {PLACE} at step 7"
VAGUE = "LostRankError: rank 0 lost its connection to another rank at step 7"
EXITED = "srun: error: n1: task 0: Exited with exit code 80\n"
KILLED = "srun: error: n2: task 1: Killed\n"
SIGKILLED = f"lost rank 1 (node n2): killed by SIGKILL{LAST}"
CRASHED = f"rank 1 (node n2) crashed in native code (SIGABRT){LAST}"
STEPD = "slurmstepd: error: *** "
AT = "CANCELLED AT 2026-11-23T02:32:29"


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    """One session of two ranks on n1 and n2, heard of at step 7, which is over."""
    files = RunFiles(tmp_path)
    append(files, {"event": "start", "from_step": 0, "ranks": 2, "pid": 42})
    ranks = [{"rank": rank, "node": f"n{rank + 1}", "step": 7, "place": PLACE} for rank in range(2)]
    replace_json(files.progress, {"pid": 42, "step": 7, "ranks": ranks})
    return files


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("srun: error: n2: task 1: Killed", {"kind": "signal", "tasks": (1,), "node": "n2", "number": 9}),
        (
            "srun: error: n1: tasks 0,2-3: Exited with exit code 81",
            {"kind": "exit", "tasks": (0, 2, 3), "node": "n1", "number": 81},
        ),
        (
            "srun: error: n1: task 0: Exited with exit code 137",
            {"kind": "signal", "tasks": (0,), "node": "n1", "number": 9},
        ),
        (
            "srun: error: gpu-07: task 5: Segmentation fault (core dumped)",
            {"kind": "signal", "tasks": (5,), "node": "gpu-07", "number": 11},
        ),
        ("srun: error: n1: task 0: Out Of Memory", {"kind": "memory", "tasks": (0,), "node": "n1"}),
        ("srun: error: Node failure on n3", {"kind": "node", "node": "n3"}),
        (f"{STEPD}STEP 12.0 ON n1 {AT} DUE TO TIME LIMIT ***", {"kind": "limit", "node": "n1"}),
        (f"{STEPD}JOB 12 ON n1 {AT} DUE TO PREEMPTION ***", {"kind": "preempted", "node": "n1"}),
        (f"{STEPD}STEP 12.0 ON n1 {AT} DUE TO NODE FAILURE, SEE ... ***", {"kind": "node", "node": "n1"}),
        (
            "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0. Some of your processes may have "
            "been killed by the cgroup out-of-memory handler.",
            {"kind": "memory"},
        ),
    ],
)  # fmt: skip
def test_what_srun_says(line: str, event: dict[str, Any]) -> None:
    said = f"{STEPD}STEP 12.0 ON n1 {AT} ***\nsrun: Terminating StepId=12.0\n{line}\n"
    assert events(said) == [Event(line=line, **event)]


@pytest.mark.parametrize(
    ("words", "own", "said", "ending"),
    [
        # rank 0 saw its peer vanish; srun knows the node and the signal
        ({0: (80, LOST)}, None, KILLED, (80, f"LostRankError: {SIGKILLED}")),
        # on another machine nobody can know; but srun learnt of it first, or it killed the others afterwards
        ({0: (80, VAGUE)}, None, KILLED + EXITED, (80, SIGKILLED)),
        ({0: (80, VAGUE)}, None, EXITED + KILLED, (80, VAGUE.replace("rank 0", "rank 0 (node n1)"))),
        # srun killed the others because rank 0 ended with 81, so that they are no cause
        ({0: (81, HUNG)}, None, KILLED, (81, HUNG.replace("rank 1", "rank 1 (node n2)", 1))),
        # the first that did not only suffer, though it spoke later
        ({0: (80, LOST), 1: (84, "MemoryShortError: x")}, None, KILLED, (84, "MemoryShortError: x")),
        ({1: (1, "LookupError: x")}, (80, LOST), "", (1, "LookupError: x")),
        # rank 0 itself wrote the end that all share; that srun then killed rank 1 says nothing
        ({}, (75, "Stopped: x"), KILLED, (75, "Stopped: x")),
        ({}, (0, "finished"), "srun: error: n2: task 1: Segmentation fault\n", (0, "finished")),
        # nobody had the time for a word
        ({}, None, KILLED, (80, SIGKILLED)),
        ({}, None, "", (80, f"killed (no message left){LAST}")),
        ({}, None, "srun: error: n2: task 1: Aborted\n", (1, CRASHED)),
        ({0: (80, LOST)}, None, "srun: error: n2: task 1: Out Of Memory\n" + KILLED,
         (84, f"rank 1 (node n2) the machine is out of memory, and the kernel killed it{LAST}; lower "
              "train.micro_batch_size, or raise parallel.zero_stage")),
        ({0: (80, LOST)}, None, "srun: error: Node failure on n2\n",
         (80, f"LostRankError: lost rank 1 (node n2): the node failed{LAST}")),
        ({0: (81, HUNG)}, None, "srun: error: Node failure on n2\n",
         (80, f"lost rank 1 (node n2): the node failed{LAST}")),
        ({0: (80, LOST)}, None, f"{STEPD}STEP 12.0 ON n1 {AT} DUE TO TIME LIMIT ***\n" + KILLED,
         (80, f"the time limit came before the run had saved{LAST}")),
    ],
)  # fmt: skip
def test_the_cause_of_an_end(
    run: RunFiles,
    words: dict[int, tuple[int, str]],
    own: tuple[int, str] | None,
    said: str,
    ending: tuple[int, str],
) -> None:
    for rank, (code, reason) in words.items():
        write_crash_report(run, rank, code, reason, 7)
    if own:
        append(run, {"event": "end", "code": own[0], "reason": own[1]})
    found = examine(run, 137, said)
    assert (found.code, found.reason) == ending
    assert close_last(run, 137, said) == found
    assert close_last(run) == found  # what was known once stands
    assert [(each["code"], each["reason"]) for each in all_sessions(run)] == [ending]


def test_with_nccl_an_aborted_rank_is_no_crash(run: RunFiles) -> None:
    replace_json(run.progress, read_json(run.progress) | {"nccl": True})
    found = examine(run, 134, "srun: error: n2: task 1: Aborted (core dumped)\n")
    assert found.code == ExitCode.LOST_RANK
    assert found.reason.startswith("rank 1 (node n2) was aborted (SIGABRT), as NCCL's watchdog does")


def test_the_first_that_did_not_only_suffer() -> None:
    codes = [ExitCode.FINISHED, ExitCode.HANG, ExitCode.LOST_RANK, ExitCode.DATA, ExitCode.BUG]
    endings = [Ending(code=code, reason="x") for code in codes]
    assert [cause(endings[:n]) for n in range(6)] == [None, *(endings[i] for i in (0, 1, 1, 3, 3))]


def test_the_heartbeat_of_another_session_is_no_witness(run: RunFiles) -> None:
    append(run, {"event": "start", "from_step": 4, "ranks": 2, "pid": 43})
    assert examine(run).reason == "killed (no message left)"


def test_last_words_in_their_order_and_swept(run: RunFiles) -> None:
    for rank in (3, 1):
        write_crash_report(run, rank, 80, f"word {rank}", 5)
        time.sleep(0.01)
    (run.crash_reports / "rank-2.json").write_text('{"code": 8')  # cut short
    (run.crash_reports / ".rank-4.json.node.7.tmp").write_text("")  # of a rank that was killed as it wrote
    assert [(word["rank"], word["reason"]) for word in read_crash_reports(run)] == [
        (3, "word 3"),
        (1, "word 1"),
    ]
    clear_crash_reports(run)
    assert list(run.crash_reports.iterdir()) == []
    write_crash_report(RunFiles("/proc/nowhere"), 0, 80, "", 0)  # no error


@pytest.mark.parametrize(
    "module", ["launcher.slurm.epilogue", "launcher.slurm.status", "launcher.rundir.sessions"]
)
def test_without_torch(module: str) -> None:
    """A batch script waits for it."""
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pydantic", "numpy", "deepspeed"} & set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("status", "how"),
    [(139, "crashed in native code (SIGSEGV)"), (135, "crashed in native code (SIGBUS)"), (3, "status 3")],
)
def test_a_status_without_any_message(run: RunFiles, status: int, how: str) -> None:
    assert examine(run, status) == Ending(code=status, reason=f"{how}, see the log{LAST}")
