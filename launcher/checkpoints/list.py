"""What checkpoints a run has: one row each, committed or not."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.load import ConfigError
from launcher.validation.resume_policy import configuration
from parallel.checkpoint.commit import committed, latest, step_of
from parallel.checkpoint.manifest import MANIFEST, CheckpointError, read_manifest
from parallel.checkpoint.scores import Ranking, named, ranking, resolved
from parallel.checkpoint.sizes import size_problems

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
LAYOUT = ("world_size", "ep_size", "expert_slices", "zero_stage")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One directory beside the others."""

    name: str
    step: int | None = None
    bytes: int
    written: str  # local time
    latest: bool = False
    best: int | None = None  # 1 for the best evaluation of all checkpoints, 2 for the next, ...
    evaluation: dict[str, Any] | None = None  # metric, value and weights, of one that was evaluated
    partial: bool = False  # a save that is under way, or was killed
    problems: list[str] = field(default_factory=list)
    layout: dict[str, int | None] = field(default_factory=dict)  # that wrote it

    def __str__(self) -> str:
        what = (
            "partial" if self.partial else "damaged: " + "; ".join(self.problems) if self.problems else "ok"
        )
        mark = ", latest" if self.latest else ""
        mark += ", best" if self.best == 1 else ""
        if self.evaluation:
            mark += f", {self.evaluation['metric']} {self.evaluation['value']:.6g}"
        return f"{self.name:<24}{size(self.bytes):>11}  {layout(self.layout):<38}{self.written}  {what}{mark}"


def directory_of(place: Path) -> Path:
    """The directory of all checkpoints: of a run, or itself.

    Raises:
        ConfigError: there is none.
    """
    for directory in (place / "checkpoints", place):
        if directory.is_dir() and any(directory.glob("step-*")):
            return directory
    raise ConfigError(f"{place} is no run with checkpoints")


def checkpoint_of(place: Path, name: str | None = None) -> Path:
    """One checkpoint: a directory that is one, a run's newest, or a run's by its name.

    Args:
        place: the directory of a checkpoint, or of a run.
        name: `20`, `step-00000020`, `latest` or `best`, of a run.

    Raises:
        ConfigError, CheckpointError: it is not there.
    """
    place = resolved(place)
    if name is None and (place / MANIFEST).is_file():
        return place
    directory = directory_of(place)
    if name is None:
        newest = latest(directory)
        if newest is None:
            raise ConfigError(f"{directory} has no `latest`: name one of {_names(directory)}")
        return newest
    return named(directory, name)


def rows(directory: Path, problems: Callable[[Path], list[str]] = size_problems) -> list[Row]:
    """Every checkpoint of a directory by step, then what is no checkpoint yet.

    Args:
        directory: of all checkpoints.
        problems: what is wrong with a checkpoint, by the sizes of its files or by all their bytes.
    """
    try:
        newest = latest(directory)
    except CheckpointError:
        newest = None
    ranked = ranking(directory)
    entries = [_row(path, newest, ranked, problems(path)) for path in committed(directory)]
    partial = sorted(path for path in directory.glob("step-*.tmp") if path.is_dir())
    return entries + [
        Row(name=path.name, bytes=_bytes(path), written=_time(path), partial=True) for path in partial
    ]


def _row(path: Path, newest: Path | None, ranked: Ranking | None, damage: list[str]) -> Row:
    best, evaluation, step = None, None, step_of(path)
    if ranked and step in ranked.values:
        best = ranked.steps.index(step) + 1
        kind = {"metric": ranked.kind.metric, "weights": ranked.kind.weights}
        evaluation = {**kind, "value": ranked.values[step]}
    manifest = path / MANIFEST
    return Row(
        name=path.name,
        step=step,
        best=best,
        evaluation=evaluation,
        bytes=_bytes(path),
        written=_time(manifest if manifest.is_file() else path),
        latest=path == newest,
        problems=damage,
        layout=_layout(path),
    )


def _layout(path: Path) -> dict[str, int | None]:
    """The ranks and the stage that wrote a checkpoint, as far as its manifest and configuration say."""
    try:
        manifest = read_manifest(path)
        parallel = configuration(manifest).get("parallel", {}) if "config" in manifest else {}
    except CheckpointError:
        return {}
    stated: Mapping[str, Any] = {"zero_stage": parallel.get("zero_stage"), **manifest}
    return {name: stated.get(name) for name in LAYOUT}


def layout(entries: Mapping[str, int | None]) -> str:
    """`4 ranks, ep 2, 2 slices, ZeRO 1`."""
    world, ep, slices, stage = (entries.get(name) for name in LAYOUT)
    parts = [f"{world} ranks" if world != 1 else "1 rank"] if world else []
    parts += [f"ep {ep}"] if ep else []
    parts += [f"{slices} slices"] if slices and slices > 1 else []
    parts += [f"ZeRO {stage}"] if stage is not None else []
    return ", ".join(parts) or "-"


def size(count: float) -> str:
    """`1.5 GiB`."""
    unit = 0
    while count >= 1024 and unit < len(UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.{1 if unit else 0}f} {UNITS[unit]}"


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _time(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))


def _names(directory: Path) -> str:
    return ", ".join(path.name for path in committed(directory)) or "none"
