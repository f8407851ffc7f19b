"""Weights & Biases, online or offline: RUN/wandb has the files that `wandb sync` uploads.

W&B keeps one row a step, in ascending order, and ignores values of a step that is behind its last. A save
ends later than its step, and an evaluation may follow in the next session. So the curves of evaluations and
saves have an axis of their own (`eval/step`, `save/step`), and their values go to the newest row. Of two
saves that end in one step, the second one waits for the next row.
"""

import os
from collections.abc import Mapping
from typing import Any

import wandb

from launcher.config.tracking import PROJECT
from launcher.metrics.trackers.base import Image, Status, TrackedRun, Tracker

BY_STEP = ("train", "moe", "data")  # sections that come with every step, once each


class WandbTracker(Tracker):
    """One run of W&B for all sessions of a run, continued by its id."""

    _run: Any

    def start(self, run: TrackedRun) -> Mapping[str, str]:
        """Begin a run, or go on with the one whose id an earlier session left."""
        tracking, env = run.tracking, os.environ
        options = tracking.wandb
        self._run = wandb.init(
            dir=run.directory,
            project=tracking.project or (None if "WANDB_PROJECT" in env else PROJECT),
            name=tracking.name or (None if "WANDB_NAME" in env else run.name),
            group=tracking.group or (None if "WANDB_RUN_GROUP" in env else run.group),
            entity=options.entity,
            mode=options.mode,
            tags=tracking.tags or None,
            config=dict(run.options),
            allow_val_change=True,  # of an option that a later session has otherwise
            id=run.state.get("id"),
            resume="allow" if run.state else None,
            settings=wandb.Settings(silent=True, console="off", finish_timeout=tracking.end_timeout_s),
        )
        self._axes: set[str] = set()  # sections whose axis is defined
        self._late: list[tuple[str, dict[str, float]]] = []  # values of a section for the newest row
        self._taken: set[str] = set()  # sections that the newest row has
        return {"id": self._run.id}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values in the row of their step, or in the newest row with the step beside them."""
        sections: dict[str, dict[str, float]] = {}
        for name, value in values.items():
            sections.setdefault(name.partition("/")[0], {})[name] = value
        for section, found in sections.items():
            if section not in BY_STEP:
                self._late.append((section, {**found, **self._own_axis(section, step)}))
            elif step >= self._run.step:  # else W&B has this step of the session before a kill
                self._log(step, found)
        self._log_late(at_end=False)

    def _log(self, step: int, row: dict[str, Any]) -> None:
        if step > self._run.step:
            self._taken = set()
        self._run.log(row, step=step)

    def _log_late(self, at_end: bool) -> None:
        """Log what fits into the newest row; at the end all of it, as no further row comes."""
        late, self._late = self._late, []
        for section, row in late:
            if section in self._taken and not at_end:
                self._late.append((section, row))
            else:
                self._taken.add(section)
                self._run.log(row, step=self._run.step)

    def image(self, name: str, step: int, image: Image) -> None:
        """Log an image (3, H, W)."""
        self._log(max(step, self._run.step), {name: wandb.Image(image.transpose(1, 2, 0))})

    def text(self, name: str, step: int, text: str) -> None:
        """Keep a text among the files of the run."""
        with open(os.path.join(self._run.dir, f"{name}.txt"), "w", encoding="utf-8") as file:
            file.write(text)

    def end(self, status: Status) -> None:
        """Upload what is left, and set the state: finished, preempted or failed."""
        self._log_late(at_end=True)
        if status == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "finished" else 1)

    def where(self) -> str:
        """The page of the run, or the command that uploads it."""
        if self._run.offline:
            return f"offline, `wandb sync {os.path.dirname(self._run.dir)}` uploads it"
        return str(self._run.url)

    def _own_axis(self, section: str, step: int) -> dict[str, int]:
        """The step as a value, which is the axis of the curves of a section."""
        axis = f"{section}/step"
        if section not in self._axes:
            self._axes.add(section)
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{section}/*", step_metric=axis)
        return {axis: step}
