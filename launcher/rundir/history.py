"""sessions.jsonl: how every session of a run started and ended, and where its checkpoints stand; no torch.

A line when a session starts and a line when it ends. One that was killed has no second line until the
post-mortem of the next start, or of the batch script, adds it. Of several ends the last counts.
"""

import json
import time
from typing import Any

from launcher.exit_codes import ExitCode
from launcher.rundir.paths import RunFiles
from parallel.checkpoint.commit import committed, latest, step_of
from parallel.checkpoint.manifest import CheckpointError

NO_CRASH = (ExitCode.FINISHED, ExitCode.USER_ERROR, ExitCode.STOPPED)
Session = dict[str, Any]  # "from_step", "ranks", "pid", "job"; "code", "reason" where its end is known


def append(run: RunFiles, record: dict[str, Any]) -> None:
    """Add a line with the time.

    Raises:
        OSError: it cannot be written.
    """
    with run.sessions.open("a") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **record}) + "\n")


def all_sessions(run: RunFiles) -> list[Session]:
    """One record a session: how it started and, where that is known, how it ended."""
    sessions: list[Session] = []
    for record in _lines(run):
        if record["event"] == "reset":
            sessions = [{**session, "forgotten": True} for session in sessions]
        elif record["event"] == "start":
            sessions.append({"started": record["time"], **record})
        elif sessions:
            sessions[-1] |= record
    return sessions


def crashes(run: RunFiles) -> list[Session]:
    """The last sessions, without a break, that started where the run still stands and crashed."""
    crashed = []
    for session in reversed(sessions_without_progress(run)):
        if session.get("code") in NO_CRASH:
            break
        crashed.append(session)
    return crashed[::-1]


def sessions_without_progress(run: RunFiles) -> list[Session]:
    """The last sessions, without a break, that left no checkpoint, stopped ones among them."""
    step, sessions = committed_step(run), []
    for session in reversed(all_sessions(run)):
        if session["from_step"] != step or session.get("forgotten"):
            break
        sessions.append(session)
    return sessions[::-1]


def committed_step(run: RunFiles) -> int:
    """The step of the newest checkpoint, were the pointer to it damaged too; 0 without one."""
    try:
        path = latest(run.checkpoints)
    except CheckpointError:
        path = next(reversed(committed(run.checkpoints)), None)
    return step_of(path) if path else 0


def _lines(run: RunFiles) -> list[dict[str, Any]]:
    """The records, without a line that a kill cut short."""
    records = []
    for line in run.sessions.read_text().splitlines() if run.sessions.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"event", "time"} <= record.keys():
            records.append(record)
    return records
