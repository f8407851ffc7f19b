"""What accuracy costs at inference: every evaluation, and those that no other one beats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.study.report.charts import point, section
from launcher.study.report.drawing import Line, Point, Scale, draw, picture, styled
from launcher.study.report.findings import Chart, Findings, Metric, Section, followed, seeds_said, spread_of
from launcher.study.report.groups import Group, Spread, at_factor
from launcher.study.report.pareto import front


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A configuration, evaluated at a capacity and with a number of choices: mean and spread over seeds."""

    group: Group
    capacity_factor: float
    top_k: int
    quality: Spread
    images_s: Spread
    flops: float  # multiply-adds of one image
    dropped_fraction: float

    @property
    def way(self) -> str:
        """How it is evaluated, for a person."""
        return "exact" if self.group.is_dense else f"{at_factor(self.capacity_factor)} k={self.top_k}"


@dataclass(frozen=True, kw_only=True)
class Price:
    """What is to be kept low."""

    name: str
    title: str
    x: str
    cost: Callable[[Choice], float]  # less is better
    spread: Callable[[Choice], Spread]
    remark: str


PRICES = (
    Price(
        name="images",
        title="images/s at inference",
        x="images/s at inference, all ranks",
        cost=lambda choice: -choice.images_s.mean,
        spread=lambda choice: choice.images_s,
        remark="Speeds are as measured: whatever else the machine did then is in them.",
    ),
    Price(
        name="flops",
        title="FLOPs at inference",
        x="multiply-adds of one image",
        cost=lambda choice: choice.flops,
        spread=lambda choice: Spread(mean=choice.flops, sd=None, n=1),
        remark="A capacity changes no FLOPs here: dropped tokens are counted too.",
    ),
)


def choices(findings: Findings, metric: Metric) -> list[Choice]:
    """Every configuration in every way in which its checkpoints were evaluated."""
    return [
        Choice(
            group=group,
            capacity_factor=capacity_factor,
            top_k=top_k,
            quality=spread_of(rows, metric.of_row),
            images_s=spread_of(rows, lambda row: row["images_s"]),
            flops=rows[0]["flops"],
            dropped_fraction=spread_of(rows, lambda row: row["dropped_fraction"]).mean,
        )
        for group in findings.groups
        for (capacity_factor, top_k), rows in group.ways().items()
        if all(metric.key in row for row in rows)
    ]


def best(found: Sequence[Choice], metric: Metric, price: Price) -> list[Choice]:
    """The front: the choices that no other one beats in both, cheapest first."""
    gain = [metric.sign * choice.quality.mean for choice in found]
    return [found[i] for i in front(gain, [price.cost(choice) for choice in found])]


def pareto_chart(findings: Findings, metric: Metric, price: Price) -> Chart | str:
    """All choices, the front as a numbered line."""
    found = choices(findings, metric)
    if len(found) < 2:
        return f"Pareto front against {price.title}: fewer than two evaluations."
    kept = best(found, metric, price)
    kinds = followed(findings.groups)
    lines = [
        Line(
            label=label, style=i, kind="loose", points=[_point(c, price) for c in found if c.group in members]
        )
        for i, (label, members) in enumerate(kinds.items())
    ]
    scale = Scale(x=price.x, y=metric.label)
    with styled():
        made = draw(lines, scale)
        _mark(made.axes[0], [_point(choice, price) for choice in kept])
        drawn = picture(made, f"pareto-{price.name}", _title(metric, price))
    caption = (
        f"Every configuration at every capacity and k at inference, {seeds_said(findings.groups)}. The "
        f"stepped line and its numbers are the {len(kept)} of {len(found)} that no other one beats in both "
        f"means; the table below names them. {price.remark}"
    )
    name, title = f"pareto-{price.name}", _title(metric, price)
    return Chart(name=name, title=title, caption=caption, picture=drawn, table="pareto.csv")


def _title(metric: Metric, price: Price) -> str:
    return f"{'Accuracy' if metric.key == 'top1' else 'Loss'} against {price.title}"


def _point(choice: Choice, price: Price) -> Point:
    x = price.spread(choice)
    return point(x.mean, choice.quality, x.sd)


def _mark(axes, points: Sequence[Point]) -> None:  # type: ignore[no-untyped-def]
    """The front as steps, and the number of each of its points where there is room for it."""
    from launcher.study.report.drawing import INK, PAPER

    line = sorted(points, key=lambda p: p.x)
    rises = line[-1].y >= line[0].y
    x, y = [p.x for p in line], [p.y for p in line]
    axes.plot(x, y, color=INK, linewidth=1, drawstyle="steps-post" if rises else "steps-pre", zorder=1.5)
    axes.plot(x, y, "o", markersize=8.5, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.1)
    shown: list[tuple[float, float]] = []
    for i, p in enumerate(points, 1):
        place = axes.transData.transform((p.x, p.y))
        if all(abs(place[0] - u) + abs(place[1] - v) > 16 for u, v in shown):
            shown.append((place[0], place[1]))
            side = {"ha": "right", "xytext": (-4, 4)} if rises else {"ha": "left", "xytext": (4, 4)}
            text = axes.annotate(f"{i}", (p.x, p.y), textcoords="offset points", fontsize=8.5, **side)
            text.set_bbox({"facecolor": PAPER, "alpha": 0.75, "edgecolor": "none", "pad": 0.4})


def pareto_section(findings: Findings) -> Section:
    """Both fronts, of the foremost metric."""
    text = (
        "A point is on the front if no other one is at least as good and at least as cheap, and better in "
        "one of both. The front is of means: neighbours whose spreads overlap may change places with other "
        "seeds."
    )
    found = [pareto_chart(findings, metric, price) for metric in findings.metrics[:1] for price in PRICES]
    return section("Pareto front", text, found)
