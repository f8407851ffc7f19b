"""The chart of benchmarks/moe.py: time over dense against the skew of the load, drawn with Pillow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Row = dict[str, Any]

SCALE = 2  # pixels of the picture for each unit below
WIDTH, HEIGHT = 800, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 240, 60, 60  # margins; the legend stands in the right one
SERIES = {  # (impl, capacity factor): name, colour, where the labels stand: x, y, anchor
    ("native", 0.0): ("ours, dropless", "#0b6e4f", (0, 16, "mt")),
    ("tutel", 0.0): ("Tutel, dropless", "#c1121f", (8, 5, "lt")),
    ("deepspeed", 0.0): ("DeepSpeed, dropless", "#1d4e89", (-6, -6, "rb")),
    ("tutel", 1.25): ("Tutel, capacity 1.25", "#d9747a", (0, -9, "mb")),
    ("deepspeed", 1.25): ("DeepSpeed, capacity 1.25", "#90b4d8", None),  # drops what Tutel drops
}


def draw(rows: list[Row], path: Path) -> None:
    """Write a PNG of the rows with keys impl, capacity_factor, skew, ratio_to_dense and dropped_share."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    pen = ImageDraw.Draw(image)
    top = max(row["ratio_to_dense"] for row in rows) * 1.08
    right = max(row["skew"] for row in rows) + 0.4

    def at(skew: float, ratio: float) -> tuple[float, float]:
        x = LEFT + (skew - 1) / (right - 1) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - ratio / top * (HEIGHT - TOP - BOTTOM)
        return x * SCALE, y * SCALE

    _axes(pen, at, right, top)
    for number, ((impl, factor), (name, colour, label)) in enumerate(SERIES.items()):
        mine = [row for row in rows if (row["impl"], row["capacity_factor"]) == (impl, factor)]
        if mine:
            _series(pen, at, sorted(mine, key=lambda row: row["skew"]), colour, label)
            _legend(pen, number, name, colour)
    image.save(path, optimize=True)


def _font(size: int) -> Any:
    return ImageFont.load_default(size * SCALE)


def _axes(pen: ImageDraw.ImageDraw, at: Callable[..., tuple[float, float]], right: float, top: float) -> None:
    for ratio in range(int(top) + 1):
        pen.line([at(1, ratio), at(right, ratio)], "#dddddd" if ratio != 1 else "#888888", SCALE)
        x, y = at(1, ratio)
        pen.text((x - 8 * SCALE, y), str(ratio), "black", _font(12), anchor="rm")
    for skew in range(1, int(right) + 1):
        x, y = at(skew, 0)
        pen.text((x, y + 6 * SCALE), str(skew), "black", _font(12), anchor="mt")
    title = "MoE layer, forward + backward: time / dense MLP of equal FLOPs"
    pen.text((LEFT * SCALE, 18 * SCALE), title, "black", _font(16))
    middle = at((1 + right) / 2, 0)[0]
    pen.text((middle, (HEIGHT - 14) * SCALE), "largest / mean load of an expert", "black", _font(13), "ms")


def _series(
    pen: ImageDraw.ImageDraw,
    at: Callable[..., tuple[float, float]],
    rows: list[Row],
    colour: str,
    label: tuple[int, int, str] | None,
) -> None:
    points = [at(row["skew"], row["ratio_to_dense"]) for row in rows]
    pen.line(points, colour, 3 * SCALE, joint="curve")
    for row, (x, y) in zip(rows, points, strict=True):
        size = 4 * SCALE
        pen.ellipse([x - size, y - size, x + size, y + size], colour)
        text = (
            f"drops {row['dropped_share']:.0%}" if row["capacity_factor"] else f"{row['ratio_to_dense']:.2f}"
        )
        if label and (row["impl"] == "native" or row["skew"] > 1.5):  # where the others start they overlap
            right, down, anchor = label
            pen.text((x + right * SCALE, y + down * SCALE), text, colour, _font(11), anchor)


def _legend(pen: ImageDraw.ImageDraw, number: int, name: str, colour: str) -> None:
    x, y = (WIDTH - RIGHT + 20) * SCALE, (TOP + 14 + 24 * number) * SCALE
    pen.line([(x, y), (x + 24 * SCALE, y)], colour, 3 * SCALE)
    pen.text((x + 32 * SCALE, y), name, "black", _font(12), anchor="lm")
