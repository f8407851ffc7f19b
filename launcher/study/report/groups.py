"""Cells that differ in nothing but the seed belong together: means, spreads, and pairs of them.

A spread is always the standard deviation over seeds (n - 1 in its denominator), and n goes with it.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from launcher.study.grid.trials import Cell, Study
from launcher.study.report.results import Result
from swin_moe.renamed import current_name

EXPERTS, CHOICES = "model.moe.num_experts", "model.moe.top_k"
CAPACITY, PRIORITY = "model.moe.capacity_factor", "model.moe.batch_prioritized"
DENSE = "model.moe"  # null for the model without experts
SHORT = {EXPERTS: "E", CHOICES: "k", CAPACITY: "f"}
Settings = Mapping[str, Any]  # what sets a configuration apart from the study's others, in order


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over n seeds; `sd` is None for one seed, whose spread is not known."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(mean=mean(values), sd=stdev(values) if len(values) > 1 else None, n=len(values))


@dataclass(frozen=True, kw_only=True)
class Group:
    """One configuration with all of its trained seeds, by seed."""

    label: str
    settings: Settings
    results: Mapping[int, Result]

    @property
    def any(self) -> Result:
        """One of the cells, for what all of them share."""
        return next(iter(self.results.values()))

    @property
    def is_dense(self) -> bool:
        """Whether the model has no experts."""
        config = self.any.config
        return config is not None and config.model.moe is None

    def spread(self, value: Callable[[Result], float]) -> Spread:
        """The spread over seeds of a figure of a cell."""
        return Spread.of([value(result) for result in self.results.values()])

    def ways(self) -> dict[tuple[float, int], list[dict[str, Any]]]:
        """The evaluations of all seeds by (capacity_factor, top_k) at inference."""
        found: dict[tuple[float, int], list[dict[str, Any]]] = {}
        for result in self.results.values():
            for row in result.rows:
                found.setdefault((row["capacity_factor"], row["top_k"]), []).append(row)
        return found


def grouped(study: Study, results: Iterable[Result]) -> list[Group]:
    """The configurations that have at least one trained seed, in the study's order."""
    trained = [result for result in results if result.is_trained]
    varying = varying_options(study, [result.cell for result in trained])
    members: dict[str, list[Result]] = {}
    for result in trained:
        members.setdefault(json.dumps(result.cell.axes, sort_keys=True), []).append(result)
    return [_group(found, varying) for found in members.values()]


def _group(results: Sequence[Result], varying: Sequence[str]) -> Group:
    settings = settings_of(results[0], varying)
    by_seed = {result.cell.seed: result for result in results}
    return Group(label=label(settings), settings=settings, results=by_seed)


def varying_options(study: Study, cells: Sequence[Cell]) -> list[str]:
    """The options in which these cells of a study differ: the axes, then what single cells add."""
    names = [*study.axes, *(name for cell in cells for name in cell.axes)]
    return [name for name in dict.fromkeys(names) if _takes_several(name, cells)]


def _takes_several(name: str, cells: Iterable[Cell]) -> bool:
    return len({json.dumps(cell.axes.get(name, "absent")) for cell in cells}) > 1


def settings_of(result: Result, varying: Sequence[str]) -> dict[str, Any]:
    """The values of the varying options in a cell, as its configuration was resolved.

    A model without experts has no options of experts; it says so by model.moe = None.
    """
    assert result.config is not None
    if result.config.model.moe is None:
        rest = [name for name in varying if not name.startswith(DENSE)]
        return {DENSE: None, **{name: _option(result.config, name) for name in rest}}
    return {name: _option(result.config, name) for name in varying if name != DENSE}


def _option(config: Any, name: str) -> Any:
    value = config
    for part in current_name(name).split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part, None)
    return value


def label(settings: Settings) -> str:
    """A configuration in a few characters: `E=8 f=1.25 BPR`."""
    return " ".join(_shown(name, value) for name, value in settings.items()) or "all"


def _shown(name: str, value: Any) -> str:
    if name == DENSE:
        return "dense"
    if name == PRIORITY:
        return "BPR" if value else "no BPR"
    if name == CAPACITY:
        return at_factor(value)
    if isinstance(value, str):
        return value
    return (
        f"{SHORT.get(name, name.rpartition('.')[2])}={value:g}"
        if isinstance(value, float)
        else (f"{SHORT.get(name, name.rpartition('.')[2])}={json.dumps(value, default=str)}")
    )


def factor(value: float) -> str:
    """A capacity factor for a person: 0 is dropless, a negative one an upper bound."""
    if value == 0:
        return "dropless"
    return f"{value:g}" if value > 0 else f"≤{-value:g}"


def at_factor(value: float) -> str:
    """The same with its letter: `f=1.25`, `dropless`."""
    return f"f={value:g}" if value > 0 else f"f{factor(value)}" if value else factor(value)


def without(settings: Settings, *names: str) -> dict[str, Any]:
    """The settings without some options, as a key of what is left."""
    return {name: value for name, value in settings.items() if name not in names}


def families(groups: Iterable[Group], *free: str) -> dict[str, list[Group]]:
    """Configurations of experts that differ in the `free` options alone, by the label of all others."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(label(without(group.settings, *free)), []).append(group)
    return found


def pairs(groups: Sequence[Group], option: str, low: Any, high: Any) -> list[tuple[Group, Group]]:
    """The configurations with `low` and those with `high` that agree in everything else."""
    found = []
    for first in groups:
        for second in groups:
            values = first.settings.get(option, "absent"), second.settings.get(option, "absent")
            rest = without(first.settings, option) == without(second.settings, option)
            if values == (low, high) and rest:
                found.append((first, second))
    return found


def differences(found: Iterable[tuple[Group, Group]], value: Callable[[Result], float | None]) -> list[float]:
    """Second minus first, seed by seed, where both have the seed and the figure."""
    result = []
    for first, second in found:
        for seed in sorted(first.results.keys() & second.results.keys()):
            before, after = value(first.results[seed]), value(second.results[seed])
            if before is not None and after is not None:
                result.append(after - before)
    return result
