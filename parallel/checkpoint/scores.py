"""The value that each checkpoint of a run was evaluated at, and so the best of them.

Nothing is kept beside the checkpoints. The manifest of one that was evaluated has its value as `evaluation`,
and the `state` of each has all values of its run until then, as `evaluations`. A checkpoint counts only if
the newest one has the same value for its step: one of a branch that the run left by going back does not.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parallel.checkpoint.commit import committed, latest, path_of, step_of
from parallel.checkpoint.manifest import MANIFEST, CheckpointError, read_manifest

BEST, LATEST = "best", "latest"  # names for the checkpoint of a run, beside step-NNNNNNNN


@dataclass(frozen=True, kw_only=True)
class ScoreKind:
    """What values are of: they can be compared only if they are of one kind."""

    metric: str  # such as "top1"
    higher_is_better: bool
    weights: str  # "master", or "ema" for their moving average
    split: str | None = None  # identifies what was evaluated

    def order(self, value: float) -> float:
        """A number that is lower for a better value."""
        return -value if self.higher_is_better else value

    def ranked(self, values: Mapping[int, float]) -> list[int]:
        """Steps by their values, the best first; of equal values the earlier step is better."""
        return sorted(values, key=lambda step: (self.order(values[step]), step))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The values of a run's evaluations by step; None stands for one that is no number."""

    kind: ScoreKind
    values: Mapping[int, float | None]

    @property
    def record(self) -> dict[str, Any]:
        """For the state of a checkpoint; JSON-able."""
        return {**asdict(self.kind), "values": [[step, value] for step, value in self.values.items()]}


def finite(value: Any) -> float | None:
    """A value that can be compared; None for NaN, infinities and whatever is no number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def scores_of(manifest: Mapping[str, Any]) -> Scores | None:
    """All values of a run until a checkpoint; None where its manifest has none, or garbled ones."""
    record = _mapping(_mapping(manifest.get("state")).get("evaluations"))
    try:
        kind = ScoreKind(
            **{name: record[name] for name in ("metric", "higher_is_better", "weights", "split")}
        )
        return Scores(kind=kind, values={int(step): finite(value) for step, value in record["values"]})
    except (KeyError, TypeError, ValueError):
        return None


def scored(directory: Path, scores: Scores, up_to_step: int | None = None) -> dict[int, float]:
    """The values of the checkpoints that are there and were saved with their evaluation, by step.

    Args:
        directory: of all checkpoints of a run.
        scores: of the run.
        up_to_step: leave later ones out.
    """
    found = {}
    for path in committed(directory):
        value = scores.values.get(step_of(path))
        if value is None or (up_to_step is not None and step_of(path) > up_to_step):
            continue
        if finite(_manifest(path).get("evaluation")) == value:
            found[step_of(path)] = value
    return found


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The checkpoints of a run that were evaluated, the best first."""

    kind: ScoreKind
    values: Mapping[int, float]  # by step

    @property
    def steps(self) -> list[int]:
        """The steps, the best first."""
        return list(self.values)


def ranking(directory: Path) -> Ranking | None:
    """Rank a run's checkpoints by what its newest one knows; None where none was evaluated."""
    newest = next((manifest for path in _newest_first(directory) if (manifest := _manifest(path))), {})
    scores = scores_of(newest)
    if scores is None:
        return None
    values = scored(directory, scores, newest["step"])
    return (
        Ranking(kind=scores.kind, values={s: values[s] for s in scores.kind.ranked(values)})
        if values
        else None
    )


def named(directory: Path, name: str) -> Path:
    """The checkpoint of a name: `best`, `latest`, `step-00000020` or `20`.

    Args:
        directory: of all checkpoints of a run.
        name: of one.

    Raises:
        CheckpointError: there is none of that name.
    """
    if name == BEST:
        ranked = ranking(directory)
        if ranked is None:
            raise CheckpointError(
                f"{directory} has no best checkpoint: none was saved with an evaluation; set "
                "checkpoint.keep_best, or name a step"
            )
        return path_of(directory, ranked.steps[0])
    path = latest(directory) if name == LATEST else _of_step(directory, name)
    if path is None or not (path / MANIFEST).is_file():
        raise CheckpointError(f"{directory} has no checkpoint {name}; it has {_names(committed(directory))}")
    return path


def resolved(path: Path) -> Path:
    """DIRECTORY/best as the best checkpoint of that directory, and any other path as it is.

    Raises:
        CheckpointError: no checkpoint there is the best.
    """
    is_name = path.name == BEST and not path.exists() and path.parent.is_dir() and committed(path.parent)
    return named(path.parent, BEST) if is_name else path


def _of_step(directory: Path, name: str) -> Path:
    digits = name.removeprefix("step-")
    return path_of(directory, int(digits)) if digits.isascii() and digits.isdecimal() else directory / name


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths) or "none"


def _newest_first(directory: Path) -> list[Path]:
    """The checkpoint that `latest` names, then all by step."""
    try:
        first = latest(directory)
    except CheckpointError:
        first = None
    return [*([first] if first else []), *reversed(committed(directory))]


def _manifest(path: Path) -> Mapping[str, Any]:
    """A manifest; an empty one where it cannot be read."""
    try:
        return read_manifest(path)
    except CheckpointError:
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
