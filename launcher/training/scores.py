"""What the evaluations of a run decide: which checkpoints are the best, and whether training stops early.

Both are functions of the values of all evaluations so far, which every rank has and each checkpoint keeps: a
resumed run decides as one that was never interrupted. The evaluation before the first step decides nothing.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.duration import parse_evaluations
from launcher.config.schema import EarlyStopConfig
from parallel.checkpoint.commit import annotate, path_of
from parallel.checkpoint.manifest import CheckpointError, read_manifest
from parallel.checkpoint.scores import ScoreKind, Scores, finite, scored, scores_of
from parallel.ranks.collectives import gather_objects

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """When training stops before its duration ends; as Lightning's and Keras's `EarlyStopping`.

    A value is better if it differs from the best one by more than `min_delta`. Training stops after so many
    evaluations in a row without a better value, or so many steps after the best one.
    """

    patience: str  # as configured, for messages
    evaluations: int | None
    steps: int | None
    min_delta: float

    @classmethod
    def of(cls, config: EarlyStopConfig, steps: Callable[[str], int]) -> "EarlyStop":
        """The rule of a configuration; `steps` counts the optimizer steps of a duration."""
        evaluations = parse_evaluations(config.patience)
        return cls(
            patience=config.patience,
            evaluations=evaluations,
            steps=steps(config.patience) if evaluations is None else None,
            min_delta=config.min_delta,
        )

    def reason(self, scores: Scores) -> str | None:
        """Why training stops after these evaluations; None if it goes on."""
        best, at, waited, last = None, 0, 0, 0
        for last, value in scores.values.items():
            if value is not None and (best is None or self._is_better(scores.kind, value, best)):
                best, at, waited = value, last, 0
            else:
                waited += 1
        is_over = (
            waited >= self.evaluations if self.evaluations is not None else last - at >= (self.steps or 0)
        )
        if not waited or not is_over:
            return None
        found = "no number" if best is None else f"{best:.6g} at step {at}"
        margin = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return (
            f"train.early_stop: {scores.kind.metric} has not become better{margin} for {self.patience} "
            f"(best: {found})"
        )

    def _is_better(self, kind: ScoreKind, value: float, best: float) -> bool:
        return kind.order(best) - kind.order(value) > self.min_delta


class ScoreBoard:
    """The values of a run's evaluations, and the best of its checkpoints.

    Args:
        kind: of the values.
        keep_best: so many checkpoints, those with the best values, stay.
        early_stop: when training stops early, if it may.
    """

    def __init__(self, kind: ScoreKind, *, keep_best: int, early_stop: EarlyStop | None) -> None:
        self.kind, self._keep_best, self._early_stop = kind, keep_best, early_stop
        self._values: dict[int, float | None] = {}
        self._saved: dict[int, float] = {}  # of the run's checkpoints that have an evaluation

    @property
    def scores(self) -> Scores:
        """All values so far."""
        return Scores(kind=self.kind, values=dict(sorted(self._values.items())))

    @property
    def best(self) -> list[int]:
        """The steps whose checkpoints stay, the best first."""
        return self.kind.ranked(self._saved)[: self._keep_best]

    @property
    def stop_reason(self) -> str | None:
        """Why training stops now, if it does."""
        return self._early_stop.reason(self.scores) if self._early_stop else None

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Take the values of the evaluation after `step`, that of step 0 excepted."""
        if step:
            self._values[step] = finite(values.get(self.kind.metric))

    def value_of(self, step: int) -> float | None:
        """The value of the evaluation after `step`; None without one, or if it is no number."""
        return self._values.get(step)

    def is_among_the_best(self, step: int) -> bool:
        """Whether a checkpoint of `step` would stay for its value."""
        value = self.value_of(step)
        if value is None:
            return False
        return step in self.kind.ranked(self._saved | {step: value})[: self._keep_best]

    def saves(self, step: int) -> None:
        """A checkpoint of `step` is being written, with its evaluation if there is one."""
        value = self.value_of(step)
        self._saved.pop(step, None)
        if value is not None:
            self._saved[step] = value

    def failed(self, step: int) -> None:
        """The checkpoint of `step` could not be written."""
        self._saved.pop(step, None)

    def load(self, scores: Scores | None, saved: Mapping[int, float]) -> bool:
        """Go on from the values of a checkpoint.

        Args:
            scores: in its state, if there are any.
            saved: the values of the checkpoints that are there.

        Returns:
            False if its values cannot be compared with new ones: the board then stays empty.
        """
        if scores is None or scores.kind != self.kind:
            return scores is None
        self._values, self._saved = dict(scores.values), dict(saved)
        return True


def restore(board: ScoreBoard, directory: Path, manifest: Mapping[str, Any], *, is_first: bool) -> None:
    """Go on from the evaluations that a checkpoint knows, and the checkpoints that rank 0 sees."""
    scores = scores_of(manifest)
    there = scored(directory, scores, manifest["step"]) if scores and is_first else {}
    if not board.load(scores, gather_objects(there)[0]) and is_first:
        logger.warning(
            "the evaluations until now were of something else (%s): the best checkpoint is found anew",
            scores.kind if scores else None,
        )


def annotate_evaluation(board: ScoreBoard, directory: Path, step: int, *, is_first: bool) -> None:
    """Write the evaluation after `step` into its checkpoint, which was saved before it; on all ranks."""
    board.saves(step)
    if not is_first:
        return
    path = path_of(directory, step)
    try:
        state = {
            **read_manifest(path)["state"],
            "evaluation_is_owed": False,
            "evaluations": board.scores.record,
        }
        annotate(path, {"evaluation": board.value_of(step), "state": state})
    except (OSError, CheckpointError) as error:
        logger.warning("%s: its evaluation could not be written: %s", path, error)
