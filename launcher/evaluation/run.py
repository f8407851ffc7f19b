"""Evaluation of a checkpoint: in its standard modes, or in all modes of a sweep."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launcher.console.columns import aligned
from launcher.evaluation.context import EvalContext
from launcher.evaluation.loop import Evaluation, Observer, eval_stream, evaluate
from launcher.evaluation.modes import EvalMode, need_groups, standard_modes, sweep_modes

MODE = ("capacity_factor", "top_k")  # the first columns of a sweep; the metric's values follow
OF_EVERY_MODE = ("dropped_fraction", "images_s")  # the last ones


def evaluate_standard(context: EvalContext, factor: float | None, observers: Sequence[Observer] = ()) -> None:
    """Evaluate in the standard modes, print one line per mode and write evaluation.json.

    The tables of the metric in the first mode are printed and written as CSV, its image as pictures.png, and
    its files beside them.

    Args:
        context: the checkpoint.
        factor: of the mode with a capacity; None is that of the configuration.
        observers: get the outputs of the first mode.
    """
    modes = standard_modes(context.config.model.moe, factor)
    evaluations, classes = _evaluate(context, modes, observers, context.directory)
    heads = [context.name, *(f"  {mode.name}" for mode in modes[1:])]
    if modes[0].name != "exact":
        heads[0] += f", {modes[0].name}"
    for head, mode, one in zip(heads, modes, evaluations, strict=True):
        context.say(f"{head}: {mode.line(context.metric(), one.metrics)}")
    records = [mode.record(one) for mode, one in zip(modes, evaluations, strict=True)]
    context.write_json("evaluation", {"ranks": context.mesh.dims.world_size, "modes": records})
    for name, table in context.metric().tables(evaluations[0].metrics, classes).items():
        context.write_csv(name, table.columns, table.rows)
        context.say(table.text())
    for path in evaluations[0].files:
        context.say(f"  {path.stem}: {path}")
    if evaluations[0].image is not None:
        context.write_png("pictures", evaluations[0].image)


def sweep(context: EvalContext, factors: Sequence[float], choices: Sequence[int]) -> None:
    """Evaluate every capacity factor with every top_k, print a table, and write sweep.json and sweep.csv.

    The checkpoint is loaded once, and every image is decoded once.
    """
    moe = context.config.model.moe
    assert moe is not None
    modes = sweep_modes(moe, factors, choices)
    records = [mode.record(one) for mode, one in zip(modes, _evaluate(context, modes)[0], strict=True)]
    values = [name for name, value in records[0].items() if isinstance(value, float)]
    columns = [*MODE, *(name for name in values if name not in (*MODE, *OF_EVERY_MODE)), *OF_EVERY_MODE]
    rows = [[record[name] for name in columns] for record in records]
    context.say(f"{context.name}, {records[0]['images']} images\n{_table(columns, rows)}")
    context.write_json("sweep", {"ranks": context.mesh.dims.world_size, "rows": records})
    context.write_csv("sweep", columns, rows)


def labels_of_split(context: EvalContext) -> Tensor:
    """The label of every sample of the validation split, in index order: (samples,) int64."""
    with eval_stream(context.config, context.mesh, grouped=False, classes=context.mapped_to) as stream:
        return torch.from_numpy(stream.labels())


def _evaluate(
    context: EvalContext,
    modes: Sequence[EvalMode],
    observers: Sequence[Observer] = (),
    directory: Path | None = None,
) -> tuple[list[Evaluation], Sequence[str]]:
    """Evaluate a checkpoint in some modes on its validation split, and its classes; every rank calls it."""
    calls, evaluated = [mode.call for mode in modes], replace(context.evaluated, directory=directory)
    with eval_stream(
        context.config, context.mesh, grouped=need_groups(modes), classes=context.mapped_to
    ) as stream:
        return evaluate(evaluated, stream, calls, observers), stream.classes or ()


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The rows as text, one column per metric."""
    titles = [column.removesuffix("_factor").removesuffix("_fraction") for column in columns]
    cells = [titles, *([_shown(c, value) for c, value in zip(columns, row, strict=True)] for row in rows)]
    return "\n".join(aligned(cells, right=True, indent="  "))


def _shown(column: str, value: float) -> str:
    """One value in the unit of its column."""
    if column in ("top1", "top5", "dropped_fraction"):
        return f"{value:.2%}"
    if column == "capacity_factor":
        return f"{value:g}" if value else "none"
    return f"{value:.0f}" if column in ("top_k", "images_s") else f"{value:.4f}"
