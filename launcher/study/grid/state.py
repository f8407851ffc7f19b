"""How a trial stands, read off its run directory: by what its run left and by what `study run` noted.

cells/NAME/cell.json   the phase in which `study run` last had it, which process that is, how it ended, and
                       the seconds that all phases so far have taken
"""

from dataclasses import dataclass
from typing import Any, Literal

from launcher.exit_codes import ExitCode
from launcher.rundir.history import all_sessions
from launcher.rundir.paths import RunFiles, read_json, replace_json
from launcher.slurm import status
from launcher.slurm.epilogue import refusal
from launcher.study.grid.requested import RequestedEvaluation
from parallel.ranks.identity import identity, is_gone, start_time

StateName = Literal[
    "waiting", "queued", "starting", "running", "trained", "evaluating", "finished", "stopped", "failed"
]
TRAINING, EVALUATING = "training", "evaluating"  # phases


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a trial is; figures are those of the run so far, or of its last evaluation."""

    name: StateName
    reason: str = ""  # why it failed or stopped
    step: int | None = None
    total_steps: int | None = None
    images_s: float | None = None
    eta_s: float | None = None  # of training
    top1: float | None = None
    loss: float | None = None
    primary: str | None = None  # of a trained trial, the value of its metric that it is judged by ...
    value: float | None = None  # ... and that value


def state_of(run: RunFiles, requested: RequestedEvaluation | None) -> State:
    """The state of a trial; `requested` is None where its run has not begun and nobody knows what it is."""
    noted = read_json(run.path / "cell.json")
    under_way = noted.get("phase") if "pid" in noted and not is_gone(noted) else None
    if under_way == EVALUATING:
        return _trained("evaluating", run)
    if is_trained(run) and under_way != TRAINING:
        if requested is not None and requested.result(run, read_json(run.summary)["steps"]):
            return _trained("finished", run)
        reason = _why_not_evaluated(run, noted)
        return _trained("failed" if reason else "trained", run, reason)
    now = status.as_json(run)
    figures = {name: now[name] for name in ("step", "total_steps", "images_s", "loss")}
    if now["state"] == "running":
        return State(name="running", eta_s=now["eta_s"], **figures)
    if under_way == TRAINING:
        return State(name="starting")
    return _ended(now, noted, figures)


def _why_not_evaluated(run: RunFiles, noted: dict[str, Any]) -> str:
    """By what `study run` noted, or the batch script; "" where nothing went wrong."""
    if noted.get("phase") == EVALUATING and noted.get("code") not in (None, 0, ExitCode.STOPPED):
        return str(noted["reason"])
    try:
        status = int((run.slurm / "evaluate-status").read_text())
    except (OSError, ValueError):
        return ""
    return "" if status in (0, ExitCode.STOPPED) else f"status {status}: {refusal(run)}"


def is_trained(run: RunFiles) -> bool:
    """Whether its last session finished, and left a summary."""
    last = next(reversed(all_sessions(run)), {})
    return last.get("code") == ExitCode.FINISHED and isinstance(read_json(run.summary).get("steps"), int)


def seconds_of(run: RunFiles, requested: RequestedEvaluation) -> float:
    """What a finished trial has taken: as noted, else what its run and its evaluation wrote down."""
    noted, summary = read_json(run.path / "cell.json"), read_json(run.summary)
    if noted.get("seconds") and noted["phase"] != "submitted":
        return float(noted["seconds"])
    evaluation = requested.result(run, summary["steps"])
    rows = evaluation.get("rows", evaluation.get("modes", ()))
    return float(summary["wall_s"]) + sum(row["images"] / row["images_s"] for row in rows)


def note(run: RunFiles, phase: str, pid: int) -> None:
    """Write down that a process works on a trial."""
    seconds = read_json(run.path / "cell.json").get("seconds", 0.0)
    who = {**identity(), "pid": pid, "start": start_time(pid)}
    replace_json(run.path / "cell.json", {"phase": phase, **who, "seconds": seconds})


def note_submitted(run: RunFiles) -> None:
    """Forget how the last attempt ended: Slurm makes another."""
    seconds = read_json(run.path / "cell.json").get("seconds", 0.0)
    replace_json(run.path / "cell.json", {"phase": "submitted", "seconds": seconds})
    (run.slurm / "evaluate-status").unlink(missing_ok=True)
    run.refused.unlink(missing_ok=True)


def note_end(run: RunFiles, code: int, reason: str, seconds: float) -> None:
    """Write down how that process ended, and after how many seconds."""
    noted = read_json(run.path / "cell.json")
    kept = {"phase": noted.get("phase"), "seconds": round(noted.get("seconds", 0.0) + seconds, 1)}
    replace_json(run.path / "cell.json", {**kept, "code": code, "reason": reason})


def _trained(name: StateName, run: RunFiles, reason: str = "") -> State:
    summary = read_json(run.summary)
    figures = {figure: summary.get(figure) for figure in ("images_s", "top1", "loss")}
    primary, steps = summary.get("primary"), summary["steps"]
    judged = {"primary": primary, "value": summary.get(primary)} if primary else {}
    return State(name=name, reason=reason, step=steps, total_steps=steps, **figures, **judged)


def _ended(now: dict[str, Any], noted: dict[str, Any], figures: dict[str, Any]) -> State:
    """Neither trained nor being trained."""
    last = now["sessions"][-1] if now["sessions"] else {}
    if now["refused"]:
        return State(name="failed", reason=now["refused"], **figures)
    if noted.get("code") and noted["code"] not in (last.get("code"), ExitCode.STOPPED):
        return State(name="failed", reason=noted["reason"], **figures)  # more than its sessions know
    if now["state"] == "not started":
        return State(name="waiting")
    if last.get("code") in (ExitCode.STOPPED, ExitCode.FINISHED):
        return State(name="stopped", reason=last["reason"], **figures)
    return State(name="failed", reason=last.get("reason") or now["presumably"] or "", **figures)
