"""One checkpoint at many capacities and numbers of choices, loaded once and every image decoded once."""

from collections.abc import Sequence
from typing import Any

from launcher.evaluation.context import Loaded
from launcher.evaluation.modes import combinations
from launcher.evaluation.standard import evaluate_in

COLUMNS = ("capacity_factor", "top_k", "top1", "top5", "loss", "dropped_fraction", "images_s")


def sweep(loaded: Loaded, factors: Sequence[float], choices: Sequence[int]) -> None:
    """Evaluate all combinations, print a table, and write sweep.json and sweep.csv."""
    moe = loaded.config.model.moe
    assert moe is not None
    ways = combinations(moe, factors, choices)
    records = [way.record(one) for way, one in zip(ways, evaluate_in(loaded, ways), strict=True)]
    columns = [name for name in COLUMNS if name in records[0]]
    rows = [[record[name] for name in columns] for record in records]
    loaded.say(f"{loaded.name}, {records[0]['images']} images\n{table(columns, rows)}")
    loaded.write_json("sweep", {"ranks": loaded.mesh.dims.world_size, "rows": records})
    loaded.write_csv("sweep", columns, rows)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The rows as text, a column a figure."""
    titles = [column.removesuffix("_factor").removesuffix("_fraction") for column in columns]
    cells = [titles, *([shown(c, value) for c, value in zip(columns, row, strict=True)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells
    )


def shown(column: str, value: float) -> str:
    """One figure in the unit of its column."""
    if column in ("top1", "top5", "dropped_fraction"):
        return f"{value:.2%}"
    if column == "capacity_factor":
        return f"{value:g}" if value else "none"
    return f"{value:.4f}" if column == "loss" else f"{value:.0f}"
