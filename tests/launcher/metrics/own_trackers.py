"""Trackers of another package, as `tracking.trackers` names them: one that works, and some that do not."""

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launcher.config.tracking import TrackingConfig
from launcher.metrics.trackers.base import Image, Status, TrackedRun, Tracker


class FileTracker(Tracker):
    """Writes every call as a line of RUN/calls.jsonl; refuses the option `bad`."""

    @classmethod
    def problems(cls, tracking: TrackingConfig) -> Sequence[str]:
        bad = tracking.options.get("bad")
        return [] if bad is None else [f"tracking.options.bad ({bad}): leave it out"]

    def start(self, run: TrackedRun) -> Mapping[str, str]:
        tempfile.mkdtemp()  # which no exit handler removes
        self.path = run.directory / "calls.jsonl"
        sessions = int(run.state.get("sessions", 0)) + 1
        seed = run.options["seed"]
        self._write("start", run.name, run.group, run.start_step, run.reached_step, sessions, seed)
        return {"sessions": str(sessions)}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._write("scalars", step, dict(values))

    def image(self, name: str, step: int, image: Image) -> None:
        self._write("image", name, step, image.shape, str(np.asarray(image).dtype))

    def text(self, name: str, step: int, text: str) -> None:
        self._write("text", name, step, text)

    def end(self, status: Status) -> None:
        self._write("end", status)

    def where(self) -> str:
        return f"see {self.path}"

    def _write(self, *call: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(call) + "\n")


class RaisingTracker(FileTracker):
    """Fails at step 2, as a server that is gone or a disk that is full."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step == 2:
            raise OSError(28, "No space left on device")
        super().scalars(step, values)


class EndlessTracker(FileTracker):
    """Never ends, and has a process of its own that does not end either."""

    def end(self, status: Status) -> None:
        super().end(status)
        os.system("sleep 601.25")


class BlockedTracker(FileTracker):
    """Waits for a server before it takes anything."""

    def start(self, run: TrackedRun) -> Mapping[str, str]:
        time.sleep(600)
        return {}


class CrashingTracker(FileTracker):
    """Takes its process along."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        os._exit(3)


class LeavingTracker(FileTracker):
    """Ends its process as if all was well."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        os._exit(0)


class CarelessTracker(FileTracker):
    """Cannot even be checked."""

    @classmethod
    def problems(cls, tracking: TrackingConfig) -> Sequence[str]:
        return [str(tracking.options["missing"])]


class NoTracker:
    """Has none of the methods."""
