"""One session of a run in its sessions.jsonl, and the refusal to begin another in a crash loop; no torch.

Rank 0 writes. What a session that was killed could not say, the next one writes down first.
"""

import os
from typing import TYPE_CHECKING

from launcher.errors import CrashLoopError
from launcher.exit_codes import ExitCode
from launcher.rundir.crash_report import clear_crash_reports
from launcher.rundir.history import append, committed_step, crashes
from launcher.rundir.postmortem import close_last
from parallel.ranks.identity import slurm_job

if TYPE_CHECKING:
    from launcher.rundir.directory import RunDirectory


class Sessions:
    """The sessions of one run, of which this process may be in one; it holds the run's lock."""

    def __init__(self, run: "RunDirectory") -> None:
        self._run, self._path = run, run.sessions
        self._start: int | None = None  # bytes of the file when this session began

    def check(self, budget: int, *, reset: bool = False) -> None:
        """Refuse to start where the last sessions all crashed without a new checkpoint.

        Args:
            budget: so many crashes in a row are enough; 0 for no limit.
            reset: forget the crashes so far.

        Raises:
            CrashLoopError: with the end of the last one.
        """
        self._close_last()
        if reset or not budget or len(crashed := crashes(self._run)) < budget:
            return
        raise CrashLoopError(
            f"run_dir ({self._run.path}): the last {len(crashed)} sessions ended without a checkpoint after "
            f"step {committed_step(self._run)}; the last: {crashed[-1]['reason']}. See {self._path}; "
            "once the reason is gone, start with --reset-crashes (or raise checkpoint.crash_budget)"
        )

    def begin(self, world_size: int, *, reset: bool = False, budget: int = 0) -> None:
        """Write down that a session starts; what the one before left is examined and swept.

        Args:
            world_size: ranks.
            reset: forget the crashes so far.
            budget: of crashes, for whoever decides about a requeue.
        """
        self._close_last()
        clear_crash_reports(self._run)
        self._start = self._path.stat().st_size if self._path.exists() else 0
        if reset:
            append(self._run, {"event": "reset"})
        append(
            self._run,
            {
                "event": "start",
                "from_step": committed_step(self._run),
                "ranks": world_size,
                "pid": os.getpid(),
                "job": slurm_job(),
                "crash_budget": budget,
            },
        )

    def end(self, code: int, reason: str, step: int | None = None) -> None:
        """Write down how this session ends, and release the run's lock.

        A session that the user can correct has never been.
        """
        start, self._start = self._start, None
        if start is not None and code == ExitCode.USER_ERROR:
            self._forget(start)
        elif start is not None:
            at = {"step": step, "committed": committed_step(self._run)}
            append(self._run, {"event": "end", "code": code, "reason": reason, **at})
        self._run.unlock()

    def _close_last(self) -> None:
        try:
            srun_log = self._run.srun_log_before.read_text(errors="replace")
        except OSError:
            srun_log = ""
        close_last(self._run, srun_log=srun_log)

    def _forget(self, start: int) -> None:
        if start:
            os.truncate(self._path, start)
        else:
            self._path.unlink(missing_ok=True)
