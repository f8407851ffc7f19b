"""What a person writes down of a study: FILE.yaml, its options and their rules.

No `from __future__ import annotations` here: pydantic resolves the types when it validates.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.load import ConfigError, load_section
from parallel.ranges import check_ranges
from swin_moe.moe_config import MOST_CAPACITY
from swin_moe.recipes import recipe_files
from swin_moe.yaml_files import got

Settings = dict[str, Any]  # dotted option of the configuration -> value
OURS = {  # options that a study sets itself
    "seed": "use seeds: [0, 1]",
    "run_dir": "each trial gets its own below study_dir",
}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What the checkpoint of every trial with experts is evaluated at: all combinations; 0 is dropless.

    Empty is what the trial was trained with.
    """

    capacity_factors: tuple[float, ...] = ()
    top_k: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_ranges("evaluate.", self, capacity_factors=(0, MOST_CAPACITY), top_k=(1, 2**16))


@dataclass(frozen=True, kw_only=True)
class WhereConfig:
    """Options that follow from others: each trial with the values of `match` also gets those of `set`."""

    match: Settings
    set: Settings


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """The root of the file. Trials: for each seed the product of `axes`, less `exclude`, then `include`."""

    study_dir: str
    config: str  # of a run, relative to this file
    overrides: Settings = field(default_factory=dict)  # of every trial
    seeds: tuple[int, ...] = (0,)
    axes: Settings = field(default_factory=dict)  # to each option the list of its values
    include: tuple[Settings, ...] = ()  # further trials, such as the dense baseline
    exclude: tuple[Settings, ...] = ()  # trials of the product that have all of these values
    where: tuple[WhereConfig, ...] = ()
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    nproc: int = 1  # ranks of a trial
    jobs: int = 1  # trials at a time, locally
    epoch_images: int | None = None  # for the estimate, where data.train is not on this machine

    def __post_init__(self) -> None:
        for name in ("nproc", "jobs", "epoch_images"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        if problems := list(self._problems()):
            raise ValueError("\n  ".join(problems))

    def _problems(self) -> Iterator[str]:
        places = {"overrides": [self.overrides], "axes": [self.axes], "include": self.include}
        places |= {"where.set": [where.set for where in self.where]}
        for place, groups in places.items():
            for name in {name: None for group in groups for name in group if name in OURS}:
                yield f"{place}: {name} cannot be set in a study's file: {OURS[name]}"
        for name, values in {**self.axes, "seeds": self.seeds}.items():
            if not isinstance(values, list | tuple) or not values:
                yield f"{name}: needs a list of at least one value{got(values)}"
            elif twice := _twice(values):
                yield f"{name}: {twice} is listed twice"
        for place, groups in {"include": self.include, "exclude": self.exclude}.items():
            if not all(groups):
                yield f"{place}: an entry must name at least one option"


def _twice(values: Any) -> str | None:
    """The first value that is listed twice; 1 and true are two, 1 and 1.0 one."""
    seen: list[tuple[bool, Any]] = []
    for value in values:
        if (key := (isinstance(value, bool), value)) in seen:
            return json.dumps(value)
        seen.append(key)
    return None


def load_study_file(path: Path) -> StudyFile:
    """Read and validate a study's file.

    Raises:
        ConfigError: with every error at once.
    """
    return load_section(StudyFile, path)


def config_of(path: Path, file: StudyFile) -> Path:
    """The configuration that a study's file names: a path relative to that file, or the name of a recipe.

    Raises:
        ConfigError: it is not there.
    """
    config = Path(os.path.normpath(path.parent / file.config))
    if not config.is_file() and file.config in recipe_files():
        return recipe_files()[file.config]
    if not config.is_file():
        raise ConfigError(f"{path}: config ({file.config}): no such file {config}")
    return config
