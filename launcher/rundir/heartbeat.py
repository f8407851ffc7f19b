"""progress.json: where a run stands, in one small file that anyone may read without touching the run.

Rank 0 replaces it every few seconds, from a thread, and at the begin and the end of a session. What the other
ranks do it reads off the watch, so that one thread alone talks to the store.
"""

import contextlib
import os
import threading
import time
from typing import Any

from launcher.rundir.history import committed_step
from launcher.rundir.paths import RunFiles, replace_json
from parallel.ranks.identity import node_name, slurm_job
from parallel.watchdog.watch import Watchdog

LONGEST_S = 5.0


def interval_s(collective_timeout_s: float) -> float:
    """How often the file is written: three times before a hang is one."""
    return min(LONGEST_S, collective_timeout_s / 3)


class Heartbeat:
    """The progress of one session, written until `end`.

    Args:
        run: whose progress.json it is.
        watch: which knows all ranks.
    """

    def __init__(self, run: RunFiles, watch: Watchdog) -> None:
        self._run, self._watch = run, watch
        self._since_s, self._first_step = time.monotonic(), -1
        self._figures: dict[str, Any] = {"total_steps": None, "loss": None, "images_s": None}
        self._ended, self._writing = threading.Event(), threading.Lock()
        self._before = run.progress.read_bytes() if run.progress.exists() else None
        self._write(None)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def note(self, **figures: float | int) -> None:
        """Figures for the next time: total_steps, loss, images_s."""
        self._figures |= figures
        if self._first_step < 0:  # the time that a step takes counts from here
            self._since_s, self._first_step = time.monotonic(), self._watch.step

    def end(self, code: int, reason: str) -> None:
        """The last word: how the session ended."""
        self._ended.set()
        self._write({"code": code, "reason": reason})

    def undo(self) -> None:
        """The session has never been: what was there before it is there again."""
        self._ended.set()
        with self._writing, contextlib.suppress(OSError):
            if self._before is None:
                self._run.progress.unlink(missing_ok=True)
            else:
                self._run.progress.write_bytes(self._before)

    def _beat(self) -> None:
        while not self._ended.wait(interval_s(self._watch.timeout_s)):
            self._write(None)

    def _write(self, ended: dict[str, Any] | None) -> None:
        """Write the file; a failure costs nothing but the news."""
        with self._writing:
            if ended is None and self._ended.is_set():
                return
            try:
                replace_json(self._run.progress, self._record() | {"ended": ended})
            except OSError:
                return

    def _record(self) -> dict[str, Any]:
        watch, figures = self._watch, dict(self._figures)
        return {
            "time": time.time(),
            "interval_s": interval_s(watch.timeout_s),
            "host": node_name(),
            "pid": os.getpid(),
            "job": slurm_job(),
            "world_size": watch.world_size,
            "nccl": watch.options.nccl,
            "step": watch.step,
            "phase": watch.phase_name,
            **figures,
            "eta_s": self._eta_s(figures["total_steps"]),
            "checkpoint": committed_step(self._run),
            "ranks": watch.rank_statuses(),
        }

    def _eta_s(self, total_steps: int | None) -> float | None:
        """At the pace of this session so far, evaluations and saves included; None before its first step."""
        made = self._watch.step - self._first_step
        if total_steps is None or self._first_step < 0 or made < 1:
            return None
        return round((time.monotonic() - self._since_s) / made * (total_steps - self._watch.step), 1)
