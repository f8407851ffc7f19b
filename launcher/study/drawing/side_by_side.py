"""Points at one place are set side by side, and curves that lie upon each other get different widths.

Distances are in points (1/72 inch) on axes of about SIZE_PT; n points of all lines together.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from launcher.study.drawing.looks import Line

SIZE_PT = (230.0, 130.0)
SAME_PT, STEP_PT, MOST_IN_ROW, MOST_DODGE_PT = 2.0, 5.5, 5, 40.0
SAME_CURVE = 0.005  # of the height of the axes
MARKED = ("joined", "loose", "published")  # kinds of lines whose points are markers


def dodged(lines: Sequence[Line]) -> list[Line]:
    """Every line a step to the right of the one before; points get the columns dx and dy."""
    marked = [i for i, line in enumerate(lines) if line.kind in MARKED]
    step = min(STEP_PT, MOST_DODGE_PT / max(1, len(marked)))
    shifts = {i: step * (place - (len(marked) - 1) / 2) for place, i in enumerate(marked)}
    return [_moved(line, shifts.get(i, 0.0), 0.0) for i, line in enumerate(lines)]


def side_by_side(lines: Sequence[Line], *, is_log_x: bool = False, is_log_y: bool = False) -> list[Line]:
    """Points that would cover each other are moved apart; all points get the columns dx and dy."""
    marked = [line.points for line in lines if line.kind in MARKED]
    if not marked:
        return [_moved(line, 0.0, 0.0) for line in lines]
    every = pd.concat(marked)
    scaled = [_scaled(every, "x", "x_sd", is_log_x), _scaled(every, "y", "sd", is_log_y)]
    moves = iter(_moves(np.stack(scaled, axis=1) * SIZE_PT))
    moved = []
    for line in lines:
        own = [next(moves) if line.kind in MARKED else (0.0, 0.0) for _ in range(len(line.points))]
        moved.append(_moved(line, [dx for dx, _ in own], [dy for _, dy in own]))
    return moved


def is_moved(lines: Sequence[Line]) -> bool:
    """Whether any point is not drawn at its place."""
    return any(bool((line.points[["dx", "dy"]] != 0).any(axis=None)) for line in lines)


def _moved(line: Line, dx: float | list[float], dy: float | list[float]) -> Line:
    return line._replace(points=line.points.assign(dx=dx, dy=dy))


def _scaled(points: pd.DataFrame, column: str, spread: str, is_log: bool) -> NDArray[np.float64]:
    """(n,): 0 to 1 over the range of the points and their error bars."""
    values = points[column].to_numpy(float)
    bars = points[spread].fillna(0).to_numpy(float) if spread in points else np.zeros_like(values)
    if is_log:
        values, bars = np.log(values), np.zeros_like(values)
    low, high = np.min(values - bars), np.max(values + bars)
    return np.asarray((values - low) / ((high - low) or 1.0))


def _moves(places: NDArray[np.float64]) -> list[tuple[float, float]]:
    """How far each point is moved; places: (n, 2)."""
    leaders: list[int] = []
    members: list[list[int]] = []
    for i, place in enumerate(places):
        near = [g for g, j in enumerate(leaders) if np.abs(place - places[j]).max() <= SAME_PT]
        if near:
            members[near[0]].append(i)
        else:
            leaders.append(i)
            members.append([i])
    moves = [(0.0, 0.0)] * len(places)
    for group in members:
        for i, move in zip(group, _row(len(group)), strict=True):
            moves[i] = move
    return moves


def _row(count: int) -> list[tuple[float, float]]:
    """Places around the middle for so many markers, in rows of MOST_IN_ROW."""
    rows = [min(MOST_IN_ROW, count - start) for start in range(0, count, MOST_IN_ROW)]
    return [
        (STEP_PT * (column - (size - 1) / 2), STEP_PT * ((len(rows) - 1) / 2 - row))
        for row, size in enumerate(rows)
        for column in range(size)
    ]


def uncovered(panels: Mapping[str, Sequence[Line]]) -> tuple[dict[str, list[Line]], list[tuple[str, ...]]]:
    """Curves of panels, wider where others lie upon them; and the names of those that coincide.

    Args:
        panels: the curves of each panel, in the order in which they are drawn.
    """
    drawn, same = dict[str, list[Line]](), dict[tuple[str, ...], None]()
    high = max((float(line.points.y.max()) for lines in panels.values() for line in lines), default=1.0)
    low = min((float(line.points.y.min()) for lines in panels.values() for line in lines), default=0.0)
    for panel, lines in panels.items():
        groups = _equal_curves(lines, SAME_CURVE * (high - low))
        covered = {i: len(group) - 1 - place for group in groups for place, i in enumerate(group)}
        drawn[panel] = [line._replace(covered=covered[i]) for i, line in enumerate(lines)]
        same |= {tuple(lines[i].label for i in group): None for group in groups if len(group) > 1}
    return drawn, list(same)


def _equal_curves(lines: Sequence[Line], tolerance: float) -> list[list[int]]:
    groups: list[list[int]] = []
    for i, line in enumerate(lines):
        own = line.points[["x", "y"]].to_numpy(float)
        for group in groups:
            other = lines[group[0]].points[["x", "y"]].to_numpy(float)
            if own.shape == other.shape and np.all(np.abs(own - other)[:, 1] <= tolerance):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups
