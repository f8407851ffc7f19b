"""What a rank that ends abnormally leaves for whoever asks later: RUN/last_words/rank-N.json; without torch.

The file is there before the process ends: its launcher may kill all other ranks the moment after.
"""

import contextlib
import time
from typing import Any

from launcher.rundir.paths import RunFiles, read_json, replace_json
from parallel.ranks.identity import node_name


def leave_words(run: RunFiles, rank: int, code: int, reason: str, step: int) -> None:
    """Write down how this rank ends; what cannot be written is lost, and the process ends all the same."""
    record = {"rank": rank, "node": node_name(), "code": code, "reason": reason, "step": step}
    with contextlib.suppress(OSError):
        run.last_words.mkdir(exist_ok=True)
        replace_json(run.last_words / f"rank-{rank}.json", {**record, "time": time.time()})


def words_left(run: RunFiles) -> list[dict[str, Any]]:
    """The last words of the session so far, in the order in which they were left."""
    words = (read_json(path) for path in run.last_words.glob("rank-*.json"))
    return sorted((each for each in words if "code" in each), key=lambda each: each["time"])


def sweep_words(run: RunFiles) -> None:
    """A session begins: forget the last words of the one before.

    Raises:
        OSError: they cannot be removed.
    """
    for path in run.last_words.glob("rank-*"):
        path.unlink()
