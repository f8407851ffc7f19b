"""The weak-scaling chart of `plan --simulate`, as PNG and SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.plan.search.simulate import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = ("images/s", "share of a step", "goodput")


def draw(points: Sequence[Point], title: str, directory: Path) -> list[Path]:
    """Draw simulated points side by side; returns the files."""
    chart = figure_of(points, title)
    files = [directory / f"weak_scaling.{kind}" for kind in ("png", "svg")]
    for file in files:
        chart.savefig(file, dpi=120)
    return files


def figure_of(points: Sequence[Point], title: str) -> "Figure":
    """Speed, shares of a step, and goodput beside efficiency, whose axis holds every point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(PANELS))
    ranks = [point.ranks for point in points]
    first = points[0].time.images_s / points[0].ranks
    axes[0].loglog(ranks, [point.time.images_s for point in points], "o-", base=2, label="predicted")
    axes[0].loglog(ranks, [first * n for n in ranks], "k:", base=2, label="linear")
    for name in dict.fromkeys(name for point in points for name in point.time.groups):
        shares = [point.time.groups.get(name, 0.0) / point.time.step_s for point in points]
        axes[1].semilogx(ranks, shares, "o-", base=2, label=name)
    axes[2].semilogx(ranks, [point.goodput for point in points], "o-", base=2, label="goodput")
    axes[2].semilogx(ranks, [point.efficiency for point in points], "s--", base=2, label="efficiency")
    for axis, name in zip(axes, PANELS, strict=True):
        axis.set(xlabel="GPUs", title=name)
        axis.grid(visible=True, alpha=0.3)
        axis.legend(fontsize=8)
    axes[1].set_ylim(0, 1.05)
    axes[2].set_ylim(0, 1.05 * max(1.0, *(point.efficiency for point in points)))
    figure.suptitle(title)
    return figure
