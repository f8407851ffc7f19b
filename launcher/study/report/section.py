"""A part of the page: its charts, and why others are missing."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from launcher.study.drawing.chart import Chart
from launcher.study.report.data import ReportData


class Missing(NamedTuple):
    """A chart or a sentence that is not on the page: why, and what in the study would add it."""

    what: str
    why: str
    add: str = ""

    @property
    def text(self) -> str:
        """All of it as a sentence or two."""
        return f"{self.what}: {self.why}." + (f" To add it: {self.add}." if self.add else "")


class Section(NamedTuple):
    """A part of the report: charts, and the reasons for those that are missing."""

    title: str
    text: str
    charts: Sequence[Chart]
    missing: Sequence[Missing]

    @classmethod
    def of(cls, title: str, text: str, parts: Iterable[Chart | Missing]) -> "Section":
        """A section of charts and reasons."""
        every = list(parts)
        charts = [each for each in every if isinstance(each, Chart)]
        return cls(title, text, charts, [each for each in every if isinstance(each, Missing)])


def seeds_text(data: ReportData, labels: Iterable[str]) -> str:
    """The number of seeds behind a mean, for a caption."""
    counts = data.seeds_of(labels)
    if not counts or counts == [1]:
        return "one seed, so no spread"
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean of {n} seeds, bars are one standard deviation"


def left_out(drawn: int, there: int, what: str = "configurations") -> str:
    """The end of a caption of a chart that does not draw everything."""
    return "" if drawn == there else f" {drawn} of {there} {what} are drawn; the CSV has all."
