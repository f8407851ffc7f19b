"""Where the files of a run lie, and small JSON files that are there as a whole or not at all; no torch."""

import json
from pathlib import Path
from typing import Any

from parallel.durable import atomic_write


class RunFiles:
    """The paths of a run directory; nothing is made or read."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.sessions = self.path / "sessions.jsonl"
        self.progress = self.path / "progress.json"
        self.crash_reports = self.path / "last_words"
        self.quarantine = self.path / "quarantine.jsonl"
        self.trackers = self.path / "trackers"
        self.profile = self.path / "profile"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.slurm = self.path / "slurm"
        self.cancelled = self.slurm / "cancelled"
        self.log = self.slurm / "log.txt"
        self.refused = self.slurm / "refused.txt"  # why the last start was, before it was a session
        self.srun_log_before = self.slurm / "srun-said-before.txt"  # by srun, of the step before this one


def replace_json(path: Path, record: dict[str, Any]) -> None:
    """Write a file that a reader finds old or new, never in between.

    Raises:
        OSError: it cannot be written; the old one stands.
    """
    atomic_write(path, json.dumps(record) + "\n", sync="none")


def read_json(path: Path) -> dict[str, Any]:
    """What `replace_json` wrote; empty where there is nothing, or nothing that can be read."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
