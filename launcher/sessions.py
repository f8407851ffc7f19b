"""What became of every session of a run: sessions.jsonl, and the crash loop that it shows.

A line when a session starts and a line when it ends; one that was killed has no second line. Rank 0 writes.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from launcher.errors import CrashLoopError
from launcher.exit_codes import ExitCode
from launcher.run_directory import RunDirectory
from parallel.commit import CheckpointError, committed, latest, step_of

NO_CRASH = (ExitCode.FINISHED, ExitCode.USER_ERROR, ExitCode.STOPPED)


class Sessions:
    """The sessions of one run, of which this process may be in one."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._path = run, run.path / "sessions.jsonl"
        self._start: int | None = None  # bytes of the file when this session began

    def check(self, budget: int, *, reset: bool = False) -> None:
        """Refuse to start where the last sessions all crashed without a new checkpoint.

        Args:
            budget: so many crashes in a row are enough; 0 for no limit.
            reset: forget the crashes so far.

        Raises:
            CrashLoopError: with the end of the last one.
        """
        if reset or not budget or len(crashes := self._crashes()) < budget:
            return
        step = _committed_step(self._run)
        raise CrashLoopError(
            f"run_dir ({self._run.path}): the last {len(crashes)} sessions ended without a checkpoint after "
            f"step {step}; the last: {crashes[-1].get('reason', 'killed')}. See {self._path}; "
            "once the reason is gone, start with --reset-crashes (or raise checkpoint.crash_budget)"
        )

    def begin(self, world_size: int, *, reset: bool = False) -> None:
        """Write down that a session starts."""
        self._start = self._path.stat().st_size if self._path.exists() else 0
        if reset:
            self._write({"event": "reset"})
        self._write(
            {
                "event": "start",
                "from_step": _committed_step(self._run),
                "ranks": world_size,
                "pid": os.getpid(),
            }
        )

    def end(self, code: int, reason: str, step: int | None = None) -> None:
        """Write down how this session ends, and let go of the run's lock.

        A session that the user can correct has never been.
        """
        start, self._start = self._start, None
        if start is not None and code == ExitCode.USER_ERROR:
            self._forget(start)
        elif start is not None:
            at = {"step": step, "committed": _committed_step(self._run)}
            self._write({"event": "end", "code": code, "reason": reason, **at})
        self._run.unlock()

    def _forget(self, start: int) -> None:
        if start:
            os.truncate(self._path, start)
        else:
            self._path.unlink(missing_ok=True)

    def _write(self, record: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **record}) + "\n")

    def _crashes(self) -> list[dict[str, Any]]:
        """The last sessions, without a break, that started where the run still stands and crashed."""
        committed, crashes = _committed_step(self._run), []
        for session in reversed(_sessions(self._path)):
            if session["from_step"] != committed or session.get("code") in NO_CRASH:
                break
            crashes.append(session)
        return crashes[::-1]


def _sessions(path: Path) -> list[dict[str, Any]]:
    """One record a session since the last reset: how it started and, where it could say so, how it ended."""
    sessions: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        if record["event"] == "reset":
            sessions = []
        elif record["event"] == "start":
            sessions.append(record)
        elif sessions:
            sessions[-1] |= record
    return sessions


def _committed_step(run: RunDirectory) -> int:
    """The step of the newest checkpoint, were the pointer to it damaged too; 0 without one."""
    try:
        path = latest(run.checkpoints)
    except CheckpointError:
        path = next(reversed(committed(run.checkpoints)), None)
    return step_of(path) if path else 0
