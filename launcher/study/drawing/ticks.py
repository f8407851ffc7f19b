"""Texts of ticks: two ticks of an axis never have one text, whatever its range; and as few as have room.

Legend: n ticks. Widths are in letters; an axis of a whole chart has room for AXIS_LETTERS.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from math import floor, inf, log10
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, Formatter, MaxNLocator, NullLocator

UNITS = ((12, "T"), (9, "G"), (6, "M"), (3, "k"))
LEAST_SHOWN, MOST_SHOWN = 1e-3, 1e15  # outside, an axis has an exponent
MOST_DIGITS = 17  # with so many, every double has a text of its own
CLOSE = 0.01  # of the gap to the next tick, by which a text may miss its tick
ZERO = 1e-4  # of that gap, below which a tick is 0
EXACT = 1e-6  # of a tick with a unit of its own, by which its text may miss it
WIDE = 1000.0  # largest over smallest tick from which each has a unit of its own
AXIS_LETTERS, GAP_LETTERS = 42.0, 1.5
MOST_TICKS = 5


def short(value: float, digits: int = 4) -> str:
    """A number with its unit, in so many digits: `15k`, `20M`, `3.2T`."""
    if abs(value) >= MOST_SHOWN:
        return f"{value:.{digits}g}".replace("e+", "e")
    for power, unit in UNITS:
        if abs(value) >= 10**power * (10 if power == 3 else 1):
            return f"{_plain(value / 10**power, digits)}{unit}"
    return _plain(value, digits)


def _plain(value: float, digits: int) -> str:
    """A number in so many digits, with an exponent only where it is tiny."""
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    return f"{Decimal(text):f}" if abs(value) >= 1 else text.replace("e-0", "e-")


def tick_texts(values: Iterable[float]) -> list[str]:
    """The texts of the ticks of one axis, with as few digits as tell them apart and place them.

    Args:
        values: (n,) positions, in any order.

    Returns:
        (n,) texts. Different positions have different texts.
    """
    ticks = [float(value) for value in values]
    distinct = sorted(set(ticks))
    gaps = [high - low for low, high in zip(distinct, distinct[1:], strict=False)]
    least = min(gaps, default=inf)
    sizes = [abs(value) for value in distinct if abs(value) > (ZERO * least if gaps else 0.0)]
    if not sizes:
        return ["0"] * len(ticks)
    texts = _own_units(distinct) if max(sizes) > WIDE * min(sizes) else _one_unit(distinct, least)
    return [texts[value] for value in ticks]


def _one_unit(distinct: Sequence[float], gap: float) -> dict[float, str]:
    """Texts with one unit and equally many decimals."""
    power, unit = _unit(max(map(abs, distinct)))
    for digits in range(MOST_DIGITS + 1):
        texts = {value: _fixed(Decimal(value).scaleb(-power), digits, unit) for value in distinct}
        missed = max(
            abs(float(text.removesuffix(unit) + f"e{power}") - value) for value, text in texts.items()
        )
        is_exact = missed <= (CLOSE * gap if gap < inf else EXACT * max(map(abs, distinct)))
        if is_exact and len(set(texts.values())) == len(distinct):
            return texts
    return {value: repr(value) for value in distinct}


def _unit(largest: float) -> tuple[int, str]:
    if not LEAST_SHOWN <= largest < MOST_SHOWN:
        power = floor(log10(largest))
        return power, f"e{power}"
    for power, unit in UNITS:
        if largest >= 10**power * (10 if power == 3 else 1):
            return power, unit
    return 0, ""


def _fixed(value: Decimal, digits: int, unit: str) -> str:
    text = f"{value:.{digits}f}"
    return f"{text}{unit}" if text.strip("-0.") else "0"


def _own_units(distinct: Sequence[float]) -> dict[float, str]:
    """Texts of ticks over many powers of ten, each with its own unit."""
    for digits in range(1, MOST_DIGITS + 1):
        texts = {value: short(value, digits) for value in distinct}
        is_exact = all(abs(float(f"{value:.{digits}g}") - value) <= EXACT * abs(value) for value in distinct)
        if is_exact and len(set(texts.values())) == len(distinct):
            return texts
    return {value: repr(value) for value in distinct}


class TickFormatter(Formatter):
    """Gives matplotlib the texts of `tick_texts`."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The text of one position alone."""
        return tick_texts([x])[0]

    def format_ticks(self, values: Any) -> list[str]:
        """The texts of all ticks of an axis."""
        return tick_texts(values)


class LogTicks(MaxNLocator):
    """A few round positions on a logarithmic axis, whether it spans a tenth or a hundred powers of ten."""

    def __init__(self, most: int) -> None:
        super().__init__(nbins=most, steps=[1, 2, 2.5, 5, 10])
        self._most = most

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """The positions in a range."""
        if vmin <= 0 or vmax / vmin < 8:
            return [value for value in super().tick_values(vmin, vmax) if value > 0]
        powers = range(floor(log10(vmin)), floor(log10(vmax)) + 1)
        decades = [10.0**power * factor for power in powers for factor in (1, 2, 5)]
        inside = [value for value in decades if vmin <= value <= vmax]
        return inside[:: -(-len(inside) // (self._most + 1))]


def set_ticks(axes: Axes, texts: Mapping[float, str], letters: float = AXIS_LETTERS) -> None:
    """Give both axes ticks, x as many as there is room for; call it when everything is plotted.

    Args:
        axes: with their scales and limits.
        texts: positions on x with their texts, instead of round ones.
        letters: the room below the x axis.
    """
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(TickFormatter())
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogTicks(MOST_TICKS))
    if texts:
        kept = with_room(texts, axes.get_xlim(), letters, is_log=axes.get_xscale() == "log")
        axes.xaxis.set_major_locator(FixedLocator(list(kept)))
        axes.xaxis.set_major_formatter(FixedFormatter(list(kept.values())))
        return
    locator = LogTicks if axes.get_xscale() == "log" else MaxNLocator
    for most in range(MOST_TICKS, 0, -1):
        axes.xaxis.set_major_locator(locator(most))
        low, high = sorted(axes.get_xlim())
        shown = tick_texts(x for x in axes.xaxis.get_majorticklocs() if low <= x <= high)
        if sum(map(len, shown)) + GAP_LETTERS * len(shown) <= letters:
            return


def with_room(
    texts: Mapping[float, str], limits: tuple[float, float], letters: float, *, is_log: bool
) -> dict[float, str]:
    """Those texts that do not touch: the last, the first, and between them from right to left.

    Args:
        texts: by position.
        limits: of the axis.
        letters: the room below it.
        is_log: whether it is logarithmic.
    """

    def place(x: float) -> float:
        low, high, x = np.log([*limits, x]) if is_log else (*limits, x)
        return float(letters * (x - low) / ((high - low) or 1.0))

    order = sorted(texts, reverse=True)
    order = list(dict.fromkeys([*order[:1], *order[-1:], *order]))
    kept: dict[float, str] = {}
    for x in order:
        half = len(texts[x]) / 2 + GAP_LETTERS / 2
        if all(abs(place(x) - place(y)) >= half + (len(text) + GAP_LETTERS) / 2 for y, text in kept.items()):
            kept[x] = texts[x]
    return dict(sorted(kept.items()))
