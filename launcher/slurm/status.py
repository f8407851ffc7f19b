"""Where a run stands, read off its directory alone, so that asking costs the run nothing; without torch.

from launcher.slurm.status import as_json, describe
print(describe(RunFiles("runs/demo")))       # or a RunDirectory
"""

import time
from typing import Any

from launcher.exit_codes import ExitCode
from launcher.rundir.history import all_sessions, committed_step
from launcher.rundir.paths import RunFiles, read_json
from launcher.rundir.postmortem import examine
from parallel.checkpoint.commit import path_of

SILENT = 3  # times the interval of the heartbeat
SLACK_S = 2.0  # for a file system and clocks that are not quite ours


def as_json(run: RunFiles) -> dict[str, Any]:
    """What `describe` tells, as plain values: seconds, steps, and null for what is not known."""
    progress, sessions = read_json(run.progress), all_sessions(run)
    now_s = time.time()
    age_s = round(max(0.0, now_s - progress["time"]), 1) if progress else None
    names = ("step", "total_steps", "phase", "loss", "images_s", "eta_s", "world_size", "host", "pid", "job")
    refused = run.refused.read_text().strip() if run.refused.exists() else None
    state = "refused" if refused else _state(progress, sessions, age_s)
    return {
        "run": str(run.path),
        "state": state,
        **{name: progress.get(name) for name in names},
        "heartbeat_age_s": age_s,
        "lagging": _lagging(progress) if state == "running" else [],
        "result": _result(run),
        "checkpoint": _checkpoint(run, now_s),
        "sessions": [_session(number, each) for number, each in enumerate(sessions, 1)],
        "presumably": examine(run).reason if state == "silent" else None,
        "requeues": max([(each.get("job") or {}).get("restarts", 0) for each in sessions], default=0),
        "refused": refused,
        "cancelled": run.cancelled.exists(),
    }


def describe(run: RunFiles) -> str:
    """Step, pace, ranks that lag, last checkpoint, and how each session ended, in a few lines."""
    now = as_json(run)
    if now["state"] == "not started":
        return f"{run.path}: no session has begun"
    if now["state"] == "refused" and not now["sessions"]:
        return f"{run.path}: refused: {now['refused']}"
    lines = [f"{run.path}: {_progress(now)}", f"  {_life(now)}", f"  {_saved(now)}"]
    lines += [f"  the last start was refused: {now['refused']}"] if now["refused"] else []
    lines += [f"  {_rank(rank)}" for rank in now["lagging"]]
    lines += [f"  {_story(session)}" for session in now["sessions"][:-1]]
    lines += [f"  {_story(session, now['state'])}" for session in now["sessions"][-1:]]
    if now["requeues"]:
        lines.append(f"  requeued {now['requeues']} times")
    go_on = f"  cancelled: it is not requeued; to continue: swin-moe slurm resume {run.path}"
    return "\n".join(lines + [go_on] * now["cancelled"])


def _state(progress: dict[str, Any], sessions: list[dict[str, Any]], age_s: float | None) -> str:
    if not sessions:
        return "not started"
    if "code" in sessions[-1] or progress.get("ended"):
        return "ended"
    is_silent = age_s is None or age_s > SILENT * progress["interval_s"] + SLACK_S
    return "silent" if is_silent or progress["pid"] != sessions[-1]["pid"] else "running"


def _lagging(progress: dict[str, Any]) -> list[dict[str, Any]]:
    """The ranks that say nothing new, and, where ranks stand still, those that the others wait for."""
    ranks, long_s = progress["ranks"], SILENT * progress["interval_s"]
    last = max(rank["step"] for rank in ranks)
    stand = any(rank["still_s"] > long_s for rank in ranks)
    return [
        rank
        for rank in ranks
        if rank["age_s"] > long_s or (stand and (rank["step"] < last or not rank["is_collective"]))
    ]


def _checkpoint(run: RunFiles, now_s: float) -> dict[str, Any] | None:
    step = committed_step(run)
    try:
        return {"step": step, "age_s": round(now_s - path_of(run.checkpoints, step).stat().st_mtime, 1)}
    except OSError:
        return None


def _result(run: RunFiles) -> dict[str, float]:
    """The value by which a finished run is compared, and its loss in evaluation; empty before."""
    summary = read_json(run.summary)
    names = dict.fromkeys((summary.get("primary", "top1"), "loss"))
    return {name: summary[name] for name in names if isinstance(summary.get(name), float)}


def _session(number: int, session: dict[str, Any]) -> dict[str, Any]:
    code = session.get("code")
    names = ("started", "from_step", "ranks", "job", "code", "reason", "by")
    name = ExitCode(code).name if code in list(ExitCode) else None
    return {"session": number, **{key: session.get(key) for key in names}, "name": name}


def _progress(now: dict[str, Any]) -> str:
    if now["step"] is None:
        return now["state"]
    texts = [
        f"{now['state']} at step {now['step']}" + (f"/{now['total_steps']}" if now["total_steps"] else "")
    ]
    texts += [f"loss {now['loss']:.3f}"] if now["loss"] is not None else []
    texts += [f"{now['images_s']:.0f} images/s"] if now["images_s"] is not None else []
    is_going = now["state"] == "running" and now["eta_s"] is not None
    return ", ".join(texts + ([f"{_span(now['eta_s'])} left"] if is_going else []))


def _life(now: dict[str, Any]) -> str:
    if now["heartbeat_age_s"] is None:
        return "no heartbeat"
    job = f", Slurm job {now['job']['id']}" if now["job"] else ""
    where = f"{now['world_size']} ranks, rank 0 on {now['host']}{job}"
    beat = f"last heartbeat {_span(now['heartbeat_age_s'])} ago, in phase {now['phase']}; {where}"
    return f"{beat}; presumably {now['presumably']}" if now["presumably"] else beat


def _saved(now: dict[str, Any]) -> str:
    saved = now["checkpoint"]
    return (
        f"checkpoint of step {saved['step']}, {_span(saved['age_s'])} old" if saved else "no checkpoint yet"
    )


def _rank(rank: dict[str, Any]) -> str:
    node = f" (node {rank['node']})" if rank["node"] else ""
    still = f"for {_span(rank['still_s'])} in {rank['place']}, last heartbeat {_span(rank['age_s'])} earlier"
    return f"rank {rank['rank']}{node} lags: at step {rank['step']}, {still}"


def _story(session: dict[str, Any], state: str = "") -> str:
    """How a session began and how it ended; the last one, of a run in `state`, may go on."""
    job = session["job"]
    where = (
        f", job {job['id']}" + (f" requeued {job['restarts']} times" if job["restarts"] else "")
        if job
        else ""
    )
    start = f"session {session['session']} from step {session['from_step']} ({session['started']}{where})"
    if session["code"] is None:
        return f"{start}: {'running' if state == 'running' else 'no end recorded'}"
    if session["code"] == ExitCode.FINISHED:
        return f"{start}: finished"
    if session["code"] == ExitCode.STOPPED:
        return f"{start}: stopped {session['reason'].removeprefix('Stopped: ')}"
    return f"{start}: {session['name'] or 'status'} {session['code']}: {session['reason']}"


def _span(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
