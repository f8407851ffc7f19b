"""A study as the report sees it: its results, its configurations, and the figures that can be drawn."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.study.grid.trials import Study
from launcher.study.report.drawing import Picture
from launcher.study.report.groups import (
    CAPACITY,
    CHOICES,
    EXPERTS,
    PRIORITY,
    Group,
    Spread,
    families,
    grouped,
)
from launcher.study.report.results import Result

MOST_LINES = 10  # of one chart, so that each can be followed


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of quality, of a cell's summary and of its evaluations at inference."""

    key: str
    label: str  # of an axis
    unit: float  # what it is multiplied by for a person
    sign: int  # 1 where more is better, -1 where less is
    change: str  # what a difference is counted in

    def of(self, result: Result) -> float:
        """The last evaluation of the training."""
        return self.unit * float(result.summary[self.key])

    def of_row(self, row: Mapping[str, Any]) -> float:
        """One evaluation at inference."""
        return self.unit * float(row[self.key])


TOP1 = Metric(key="top1", label="top-1 accuracy, %", unit=100.0, sign=1, change="points")
LOSS = Metric(key="loss", label="loss", unit=1.0, sign=-1, change="of loss")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is known of a study."""

    study: Study
    results: Sequence[Result]
    groups: Sequence[Group]

    @classmethod
    def of(cls, study: Study, results: Sequence[Result]) -> "Findings":
        """The findings of results in the study's order."""
        return cls(study=study, results=results, groups=grouped(study, results))

    @property
    def metrics(self) -> list[Metric]:
        """What every trained cell can be judged by, the foremost first."""
        trained = [result for result in self.results if result.is_trained]
        return [m for m in (TOP1, LOSS) if all(m.key in result.summary for result in trained)]

    @property
    def experts(self) -> list[Group]:
        """The configurations with experts."""
        return [group for group in self.groups if not group.is_dense]

    @property
    def dense(self) -> list[Group]:
        """Those without."""
        return [group for group in self.groups if group.is_dense]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of the report."""

    name: str  # of its files and its ids
    title: str
    caption: str
    picture: Picture
    table: str  # the CSV file that has its figures

    @property
    def described(self) -> str:
        """For who cannot see it."""
        return f"{self.title}. {self.caption}"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report: charts, and why there is none where one was to be expected."""

    title: str
    text: str
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()


def seeds_said(groups: Iterable[Group]) -> str:
    """How many seeds stand behind a mean, for a caption."""
    counts = sorted({len(group.results) for group in groups})
    if not counts or counts == [1]:
        return "one seed, so no spread"
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean of {n} seeds, bars are one standard deviation"


def followed(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The configurations in at most MOST_LINES kinds, told apart by as many options as that allows."""
    every = list(dict.fromkeys(name for group in groups for name in group.settings))
    rest = [name for name in every if name not in (CAPACITY, PRIORITY, CHOICES, EXPERTS)]
    free: list[str] = []
    for name in (CAPACITY, PRIORITY, *rest, CHOICES, EXPERTS):
        if len(found := families(groups, *free)) <= MOST_LINES:
            return found
        free.append(name)
    return families(groups, *free)


def spread_of(rows: Iterable[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> Spread:
    """The spread of a figure over the seeds' evaluations."""
    return Spread.of([value(row) for row in rows])
