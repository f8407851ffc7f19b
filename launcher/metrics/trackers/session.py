"""All trackers of a session of a run. RUN/trackers/NAME.json has what the next session needs to go on."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from launcher.config.load import dump_config
from launcher.config.schema import RunConfig
from launcher.metrics.trackers.base import Image, Scalar, Status, TrackedRun
from launcher.metrics.trackers.local import LocalTracker
from launcher.metrics.trackers.messages import Begin, Started
from launcher.metrics.trackers.registry import TENSORBOARD, tracker_path
from launcher.metrics.trackers.remote import RemoteTracker
from launcher.metrics.trackers.tensorboard import TensorBoardTracker
from launcher.rundir.paths import RunFiles, read_json


class Trackers:
    """The trackers of a session: TensorBoard, and those of `tracking.trackers`.

    A tracker that fails is switched off with one line, and the run goes on.

    Args:
        config: of the run.
        start_step: where this session goes on. At 0 a new run begins in each tracker, as in metrics.jsonl.
        reached_step: the last step of the earlier session.
        say: shows a line to the user.
    """

    def __init__(
        self, config: RunConfig, *, start_step: int, reached_step: int, say: Callable[[str], None]
    ) -> None:
        self._files, self._say = RunFiles(config.run_dir), say
        run = tracked_run(config, start_step, reached_step)
        local = LocalTracker(TensorBoardTracker, run, partial(self._failed, TENSORBOARD))
        self._trackers: list[LocalTracker | RemoteTracker] = [local]
        for name in config.tracking.trackers:
            if name != TENSORBOARD:
                self._trackers.append(self._remote(name, run))
        self._call("text", "config", start_step, run.config)

    @property
    def off(self) -> int:
        """How many trackers have failed."""
        return sum(tracker.is_off for tracker in self._trackers)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record values by names such as "train/loss"."""
        if values:
            self._call("scalars", step, dict(values))

    def image(self, name: str, step: int, image: Image) -> None:
        """Record an image (3, H, W)."""
        self._call("image", name, step, image)

    def end(self, status: Status, timeout_s: float) -> None:
        """End all trackers, and wait for at most `timeout_s` in all."""
        deadline_s = time.monotonic() + timeout_s
        self._call("end", status)
        for tracker in self._trackers:
            tracker.close(deadline_s)

    def _call(self, method: str, *args: object) -> None:
        for tracker in self._trackers:
            tracker.call(method, *args)

    def _remote(self, name: str, run: TrackedRun) -> RemoteTracker:
        file = self._files.trackers.resolve() / f"{name.replace('/', '_')}.json"
        own = replace(run, state=read_json(file) if run.start_step else {})
        begin = Begin(tracker_path(name), own, file)
        return RemoteTracker(begin, partial(self._started, name), partial(self._failed, name))

    def _started(self, name: str, answer: Started) -> None:
        if answer.where:
            self._say(f"tracker {name}: {answer.where}")

    def _failed(self, name: str, reason: str) -> None:
        self._say(f"tracker {name} is off: {reason}. The run goes on; {self._files.metrics} has all values")


def tracked_run(config: RunConfig, start_step: int, reached_step: int) -> TrackedRun:
    """A session of a run, without the state of a tracker."""
    directory = Path(config.run_dir).resolve()  # a job array links its tasks to the trials of a study
    name, group = names_of(directory)
    return TrackedRun(
        directory=directory,
        name=config.tracking.name or name,
        group=config.tracking.group or group,
        tracking=config.tracking,
        options=dict(_leaves(asdict(config))),
        config=dump_config(config),
        start_step=start_step,
        reached_step=max(start_step, reached_step) if start_step else 0,
    )


def names_of(directory: Path) -> tuple[str, str | None]:
    """The name of a run, and the group that it belongs to, by its directory.

    A trial lies in STUDY/cells/NAME: its group is STUDY. A task of a job array lies in RUN/007: its group is
    RUN, and its name RUN-007.
    """
    parent = directory.parent
    if parent.name == "cells" and (parent.parent / "study.json").exists():
        return directory.name, parent.parent.name
    if directory.name.isdecimal() and (RunFiles(parent).slurm).is_dir():
        return f"{parent.name}-{directory.name}", parent.name
    return directory.name, None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Every option of a tree by its dotted name; what is neither a number nor a text, as text."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)
