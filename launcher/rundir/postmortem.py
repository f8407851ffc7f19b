"""How a session ended, by what its ranks, its heartbeat and srun left: one code and one reason; no torch.

The rule of it all is `cause`: the first that did not only suffer from another. A rank that lost its
connection to another or waited for it in vain is a witness, and so is a task that srun killed because another
failed.
"""

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.exit_codes import ExitCode
from launcher.rundir.crash_report import read_crash_reports
from launcher.rundir.history import all_sessions, append
from launcher.rundir.paths import RunFiles, read_json
from launcher.rundir.srun_log import Event, events
from parallel.watchdog.words import WHY_LOST, last_heartbeat

CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS)
MEMORY_ADVICE = "lower train.micro_batch_size, or raise parallel.zero_stage"
BY = "post-mortem"  # of a record in sessions.jsonl
ABORTED = "was aborted (SIGABRT), as NCCL's watchdog does with a rank whose peer is gone"
NO_MESSAGE = "killed (no message left)"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a process, or the session of a run, ended."""

    code: int
    reason: str = ""

    @property
    def only_suffered(self) -> bool:
        """Whether another is to blame."""
        return self.code in (ExitCode.LOST_RANK, ExitCode.HANG)


def cause(endings: Sequence[Ending]) -> Ending | None:
    """The first ending that did not only suffer from another; else the first failure that has a reason."""
    failed = [ending for ending in endings if ending.code]
    caused = [ending for ending in failed if not ending.only_suffered]
    explained = [ending for ending in failed if ending.reason]
    return next(iter([*caused, *explained, *failed, *endings]), None)


def examine(run: RunFiles, status: int | None = None, srun_log: str = "") -> Ending:
    """How the last session ended; reads, and writes nothing.

    Args:
        run: its files.
        status: with which the launcher of its ranks ended, where that is known.
        srun_log: srun's standard error.
    """
    session = next(reversed(all_sessions(run)), {})
    progress = read_json(run.progress)
    progress = progress if progress.get("pid") == session.get("pid") else {}
    return _ending(read_crash_reports(run), session, progress, status, events(srun_log))


def examine_start(status: int, srun_log: str) -> Ending:
    """How ranks ended that never began a session."""
    return _ending([], {}, {}, status, events(srun_log))


def close_last(run: RunFiles, status: int | None = None, srun_log: str = "") -> Ending | None:
    """Write the end of the last session where it could not, or knew less; None where there was none."""
    session = next(reversed(all_sessions(run)), None)
    if session is None:
        return None
    if session.get("by") == BY:  # it knew more than is there now
        return Ending(code=session["code"], reason=session["reason"])
    ending = examine(run, status, srun_log)
    if (session.get("code"), session.get("reason")) != (ending.code, ending.reason):
        append(run, {"event": "end", "code": ending.code, "reason": ending.reason, "by": BY})
    return ending


def _ending(
    reports: list[dict[str, Any]],
    session: dict[str, Any],
    progress: dict[str, Any],
    status: int | None,
    log: list[Event],
) -> Ending:
    own = [Ending(code=session["code"], reason=session.get("reason", ""))] if "code" in session else []
    if own and own[0].code == ExitCode.FINISHED:
        return own[0]
    reported = [Ending(code=report["code"], reason=report.get("reason", "")) for report in reports] + own
    above = [event for event in log if _explains(event, reported, progress)]
    below = [_of_event(event, progress) for event in log if event not in above]
    ending = cause([*(_of_event(event, progress) for event in above), *reported, *below])
    if ending is None:
        return _by_status(status, progress)
    is_vague = ending in reported and ending.code == ExitCode.LOST_RANK and "lost rank" not in ending.reason
    if is_vague and log and log[0].kind == "signal":
        return _of_event(log[0], progress)  # srun learnt first which rank is gone
    return replace(ending, reason=_named(ending.reason, log, progress)) if ending.only_suffered else ending


def _explains(event: Event, reported: Iterable[Ending], progress: dict[str, Any]) -> bool:
    """Whether an event says more than the ranks that only suffered from it."""
    lost = [f"lost rank {rank}" for rank in _ranks_on(event.node, progress)]
    is_named = any(each in ending.reason for each in lost for ending in reported)
    return event.kind in ("limit", "preempted") or (event.kind == "node" and not is_named)


def _of_event(event: Event, progress: dict[str, Any]) -> Ending:
    """What a line of srun's means."""
    who = _who(event)
    last = _last_heartbeat(event.tasks, event.node, progress)
    if event.kind == "limit":
        return Ending(code=ExitCode.LOST_RANK, reason=f"the time limit came before the run had saved{last}")
    if event.kind == "preempted":
        return Ending(code=ExitCode.LOST_RANK, reason=f"preempted before the run had saved{last}")
    if event.kind == "node":
        ranks = _ranks_on(event.node, progress)
        what = f"lost rank {', '.join(map(str, ranks))} " if ranks else ""
        return Ending(code=ExitCode.LOST_RANK, reason=f"{what}(node {event.node}): the node failed{last}")
    if event.kind == "memory":
        reason = f"{who}the machine is out of memory, and the kernel killed it{last}; {MEMORY_ADVICE}"
        return Ending(code=ExitCode.OUT_OF_MEMORY, reason=reason)
    if event.kind == "launch":
        return Ending(code=ExitCode.LOST_RANK, reason=f"the ranks did not start: {event.line}")
    if event.kind == "exit":
        return Ending(code=event.number, reason=f"{who}ended with status {event.number}, see the log{last}")
    name = _signal_name(event.number)
    if event.number == signal.SIGABRT and progress.get("nccl"):
        return Ending(code=ExitCode.LOST_RANK, reason=f"{who}{ABORTED}{last}")
    if event.number in CRASHES:
        return Ending(code=ExitCode.BUG, reason=f"{who}crashed in native code ({name}){last}")
    return Ending(code=ExitCode.LOST_RANK, reason=f"lost {who.removesuffix(' ')}: killed by {name}{last}")


def _by_status(status: int | None, progress: dict[str, Any]) -> Ending:
    """By the status of the launcher alone, where no rank left a message."""
    last = _last_heartbeat((), "", progress)
    if status is None or status in (128 + signal.SIGKILL, 128 + signal.SIGTERM):
        return Ending(code=ExitCode.LOST_RANK, reason=NO_MESSAGE + last)
    if status == ExitCode.FINISHED:
        return Ending(code=ExitCode.FINISHED, reason="finished")
    crash = next((_signal_name(number) for number in CRASHES if status == 128 + number), None)
    how = f"crashed in native code ({crash})" if crash else f"status {status}"
    return Ending(code=status, reason=f"{how}, see the log{last}")


def _named(reason: str, log: Iterable[Event], progress: dict[str, Any]) -> str:
    """A rank's reason, with the node of the first rank that it names and the signal that killed that."""
    match = re.search(r"rank (\d+)(?! \(node)", reason)
    if match is None or "(node " in reason:
        return reason
    rank = int(match[1])
    death = next((event for event in log if event.kind == "signal" and rank in event.tasks), None)
    node = death.node if death else _of_rank(rank, progress).get("node", "")
    is_down = any(event.kind == "node" and event.node == node for event in log)
    if (death or is_down) and "lost rank" in reason:
        how = f"killed by {_signal_name(death.number)}" if death else "the node failed"
        reason = WHY_LOST.sub(how, reason)
    if " step " not in reason:
        reason += _last_heartbeat((rank,), "", progress)
    return reason[: match.end()] + (f" (node {node})" if node else "") + reason[match.end() :]


def _who(event: Event) -> str:
    if not event.tasks:
        return ""
    ranks = f"rank{'s' if len(event.tasks) > 1 else ''} {', '.join(map(str, event.tasks))}"
    return f"{ranks} (node {event.node}) "


def _last_heartbeat(tasks: Sequence[int], node: str, progress: dict[str, Any]) -> str:
    """`; last heartbeat at step 7, in all_reduce (accumulator.py:99)`: of those ranks, else of the run."""
    ranks = tasks or _ranks_on(node, progress) or [0]
    return last_heartbeat(_of_rank(ranks[0], progress) or progress)


def _of_rank(rank: int, progress: dict[str, Any]) -> dict[str, Any]:
    return next((each for each in progress.get("ranks", ()) if each["rank"] == rank), {})


def _ranks_on(node: str, progress: dict[str, Any]) -> list[int]:
    return [each["rank"] for each in progress.get("ranks", ()) if node and each.get("node") == node]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
