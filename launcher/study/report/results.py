"""What the cells of a study came to, read from their run directories; nothing is trained or written here."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.metrics.log import read_records
from launcher.rundir.history import all_sessions
from launcher.rundir.paths import RunFiles, read_json
from launcher.study.grid.state import is_trained, state_of
from launcher.study.grid.trials import Cell, Study, run_directory
from swin_moe.backbone.flops import Cost, cost
from swin_moe.config import ModelConfig

CURVES = ("dropped_fraction", "load_max_over_mean")  # of every MoE layer, over the steps
REASONS = {
    "waiting": ("waiting", "it has not been started"),
    "starting": ("unfinished", "its training is starting"),
    "running": ("unfinished", "its training is running"),
    "evaluating": ("unfinished", "its evaluation is running"),
    "trained": ("finished", ""),
}  # of a state of `study status`: the state here, and why it is not finished
TRAINING_PASSES = 3  # forward, and twice its work for the gradients of inputs and of weights
Curves = dict[str, dict[str, list[tuple[int, float]]]]  # figure -> layer -> (step, value)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One cell and what is known of it.

    `rows` are the evaluations at inference, each with its capacity_factor (0 is dropless), top_k, loss,
    images_s, and the flops of one image; empty where the checkpoint was not evaluated.
    """

    cell: Cell
    state: str  # finished, not evaluated, failed, stopped, unfinished or waiting
    reason: str = ""
    config: RunConfig | None = None
    cost: Cost | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    rows: tuple[dict[str, Any], ...] = ()
    curves: Curves = field(default_factory=dict)
    started: str = ""
    ended: str = ""
    host: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether the cell has figures to show."""
        return bool(self.summary)

    @property
    def images(self) -> int:
        """Images that it was trained on."""
        assert self.config is not None
        return int(self.summary["steps"]) * self.config.train.global_batch_size

    @property
    def train_flops(self) -> int:
        """Multiply-adds of its training, counted as three forward passes an image."""
        assert self.cost is not None
        return TRAINING_PASSES * self.cost.flops * self.images


class Costs:
    """Costs of models, each counted once."""

    def __init__(self) -> None:
        self._known: dict[ModelConfig, Cost] = {}

    def of(self, model: ModelConfig, top_k: int | None = None) -> Cost:
        """The cost of a model, with another number of choices if one is given; capacity changes nothing."""
        if model.moe is not None:
            even = replace(model.moe, capacity_factor=1.25, eval_capacity_factor=1.25, batch_prioritized=True)
            model = replace(model, moe=replace(even, top_k=top_k or even.top_k))
        if model not in self._known:
            self._known[model] = cost(model)
        return self._known[model]


def read_results(directory: Path, study: Study) -> list[Result]:
    """Read every cell of a study, whatever its state, in the study's order."""
    costs = Costs()
    return [read_result(cell, RunFiles(run_directory(directory, cell)), costs) for cell in study.cells]


def read_result(cell: Cell, run: RunFiles, costs: Costs) -> Result:
    """Read one cell; what is missing or cannot be read becomes its state and its reason."""
    result = _life(cell, run)
    if not is_trained(run):
        return result
    try:
        config, summary = load_config(run.config), _summary(run)
        rows = tuple(row | {"flops": costs.of(config.model, row["top_k"]).flops} for row in _rows(run))
    except (ConfigError, OSError, ValueError, KeyError, TypeError) as error:
        return replace(result, state="failed", reason=_one_line(error))
    result = replace(result, config=config, cost=costs.of(config.model), summary=summary, rows=rows)
    result = replace(result, curves=_curves(read_records(run.metrics)))
    if result.state != "finished":
        return result
    return (
        result if rows else replace(result, state="not evaluated", reason="its checkpoint is not evaluated")
    )


def _summary(run: RunFiles) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(run.summary.read_text())
    missing = [name for name in ("loss", "images_s", "dropped_fraction", "steps") if name not in summary]
    if missing:
        raise ValueError(f"{run.summary} lacks {', '.join(missing)}")
    return summary


def _rows(run: RunFiles) -> Iterable[dict[str, Any]]:
    """The evaluations of the newest checkpoint: a sweep if there is one, else exact and at a capacity."""
    found = sorted(path for path in (run.path / "eval").glob("step-*") if path.name[5:].isdecimal())
    for path in reversed(found):
        for name, rows in (("sweep", "rows"), ("evaluation", "modes")):
            if record := read_json(path / f"{name}.json"):
                return [{"ranks": record["ranks"], **row} for row in record[rows]]
    return []


def _curves(records: Iterable[dict[str, Any]]) -> Curves:
    """Every figure of CURVES by layer and step; an earlier figure of a step that was repeated is replaced."""
    found: dict[str, dict[str, dict[int, float]]] = {figure: {} for figure in CURVES}
    for record in records:
        for layer, figures in record.get("moe", {}).items():
            for figure in CURVES:
                if figure in figures:
                    found[figure].setdefault(layer, {})[record["step"]] = figures[figure]
    return {
        figure: {layer: sorted(points.items()) for layer, points in layers.items()}
        for figure, layers in found.items()
    }


def _life(cell: Cell, run: RunFiles) -> Result:
    """How its training went, as `study status` sees it, and when and where."""
    state, sessions = state_of(run, None), all_sessions(run)
    at = f" (at step {state.step} of {state.total_steps or 'unknown'})" if state.step is not None else ""
    name, reason = REASONS.get(state.name, (state.name, state.reason or "no reason is on record"))
    return Result(
        cell=cell,
        state=name,
        reason=f"{_one_line(reason)}{at}" if reason else "",
        started=sessions[0]["started"] if sessions else "",
        ended=max((session["time"] for session in sessions if "code" in session), default=""),
        host=read_json(run.progress).get("host", ""),
    )


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
