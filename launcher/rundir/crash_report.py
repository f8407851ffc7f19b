"""The crash report of a rank that ends abnormally: RUN/last_words/rank-N.json; without torch.

The file is there before the process ends: its launcher may kill all other ranks the moment after.
"""

import contextlib
import time
from typing import Any

from launcher.rundir.paths import RunFiles, read_json, replace_json
from parallel.durable import sweep_temporaries
from parallel.ranks.identity import node_name


def write_crash_report(run: RunFiles, rank: int, code: int, reason: str, step: int) -> None:
    """Write how this rank ends. If that fails, the report is lost, and the process ends all the same."""
    record = {"rank": rank, "node": node_name(), "code": code, "reason": reason, "step": step}
    with contextlib.suppress(OSError):
        run.crash_reports.mkdir(exist_ok=True)
        replace_json(run.crash_reports / f"rank-{rank}.json", {**record, "time": time.time()})


def read_crash_reports(run: RunFiles) -> list[dict[str, Any]]:
    """The crash reports of the session, in the order in which they were written."""
    reports = (read_json(path) for path in run.crash_reports.glob("rank-*.json"))
    return sorted((each for each in reports if "code" in each), key=lambda each: each["time"])


def clear_crash_reports(run: RunFiles) -> None:
    """Remove the crash reports of the session before.

    Raises:
        OSError: they cannot be removed.
    """
    for path in run.crash_reports.glob("rank-*"):
        path.unlink()
    sweep_temporaries(run.crash_reports)
