"""The results of every trial of a study, read from its run directory; nothing is trained or written here."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.metrics.records import read_records
from launcher.rundir.history import all_sessions
from launcher.rundir.paths import RunFiles, read_json
from launcher.study.grid.cost import FORWARDS, ModelCosts
from launcher.study.grid.state import is_trained, state_of
from launcher.study.grid.trials import Study, Trial, run_directory
from swin_moe.backbone.flops import Cost

LAYER_METRICS = ("dropped_fraction", "load_max_over_mean")  # of every MoE layer at every step
REASONS = {
    "waiting": ("waiting", "it has not been started"),
    "starting": ("unfinished", "its training is starting"),
    "running": ("unfinished", "its training is running"),
    "evaluating": ("unfinished", "its evaluation is running"),
    "trained": ("finished", ""),
}  # of a state of `study status`: the state here, and why it is not finished


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One trial and its results.

    `evaluations` are those at inference, each with its capacity_factor (0 is dropless), top_k, loss,
    images_s, and the flops of one image; empty where the checkpoint was not evaluated. `layers` has one row
    for each step and MoE layer, with the LAYER_METRICS.
    """

    trial: Trial
    state: str  # finished, not evaluated, failed, stopped, unfinished or waiting
    reason: str = ""
    config: RunConfig | None = None
    cost: Cost | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    evaluations: Sequence[dict[str, Any]] = ()
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)
    started: str = ""
    ended: str = ""
    host: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether the trial has metrics to show."""
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
        return FORWARDS * self.cost.flops * self.images


def read_results(directory: Path, study: Study) -> list[TrialResult]:
    """Read every trial of a study, whatever its state, in the study's order."""
    costs = ModelCosts()
    return [_read(trial, RunFiles(run_directory(directory, trial)), costs) for trial in study.trials]


def _read(trial: Trial, run: RunFiles, costs: ModelCosts) -> TrialResult:
    """Read one trial; what is missing or cannot be read becomes its state and its reason."""
    result = _history(trial, run)
    if not is_trained(run):
        return result
    try:
        config, summary = load_config(run.config), _summary(run)
        rows = [row | {"flops": costs.of(config.model, row["top_k"]).flops} for row in _evaluations(run)]
    except (ConfigError, OSError, ValueError, KeyError, TypeError) as error:
        return replace(result, state="failed", reason=_one_line(error))
    if result.state == "finished" and not rows:
        result = replace(result, state="not evaluated", reason="its checkpoint is not evaluated")
    layers, cost = _layers(read_records(run.metrics)), costs.of(config.model)
    return replace(result, config=config, cost=cost, summary=summary, evaluations=rows, layers=layers)


def _summary(run: RunFiles) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(run.summary.read_text())
    needed = (summary.get("primary", "loss"), "images_s", "dropped_fraction", "steps")
    missing = [name for name in needed if name not in summary]
    if missing:
        raise ValueError(f"{run.summary} lacks {', '.join(missing)}")
    return summary


def _evaluations(run: RunFiles) -> list[dict[str, Any]]:
    """The evaluations of the latest checkpoint: a sweep if there is one, else exact and at a capacity."""
    steps = sorted(path for path in (run.path / "eval").glob("step-*") if path.name[5:].isdecimal())
    for path in reversed(steps):
        for name, rows in (("sweep", "rows"), ("evaluation", "modes")):
            if record := read_json(path / f"{name}.json"):
                return [{"ranks": record["ranks"], **row} for row in record[rows]]
    return []


def _layers(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The LAYER_METRICS by step and layer; of a step that was repeated the later one."""
    rows = [
        {"step": record["step"], "layer": layer, **{name: stats.get(name) for name in LAYER_METRICS}}
        for record in records
        for layer, stats in record.get("moe", {}).items()
    ]
    frame = pd.DataFrame(rows, columns=["step", "layer", *LAYER_METRICS])
    return frame.drop_duplicates(["step", "layer"], keep="last").astype(dict.fromkeys(LAYER_METRICS, float))


def _history(trial: Trial, run: RunFiles) -> TrialResult:
    """How its training went, as `study status` shows it, and when and where."""
    state, sessions = state_of(run, None), all_sessions(run)
    at = f" (at step {state.step} of {state.total_steps or 'unknown'})" if state.step is not None else ""
    name, reason = REASONS.get(state.name, (state.name, state.reason or "no reason is on record"))
    return TrialResult(
        trial=trial,
        state=name,
        reason=f"{_one_line(reason)}{at}" if reason else "",
        started=sessions[0]["started"] if sessions else "",
        ended=max((session["time"] for session in sessions if "code" in session), default=""),
        host=read_json(run.progress).get("host", ""),
    )


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
