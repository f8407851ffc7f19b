"""The end of a run as a person wants to read it, and the same figures as summary.json."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import which
from statistics import median
from typing import Any

from launcher.config.schema import RunConfig
from launcher.metrics.metric import Metric
from launcher.metrics.records import read_records
from launcher.rundir.directory import RunDirectory
from parallel.checkpoint.scores import finite

OF_EVERY_EVALUATION = ("images_s", "dropped_fraction", "expert_load")  # whatever the metric, and of any set


def summarise(
    run: RunDirectory,
    config: RunConfig,
    metric: Metric,
    *,
    world_size: int,
    epoch_steps: int | None,
    stopped_early: str | None = None,
) -> dict[str, Any]:
    """Gather a finished run's figures from its metrics.jsonl and write summary.json.

    The values of the task's metric and expert_load are of the last evaluation. With the prefix ema_ they are
    of the moving average of the weights, with first_ of the evaluation before the first step
    (`train.eval_first`), where there is one. Of several validation sets, listed in validation_sets, the first
    has the plain names, and another has its name before them. `primary` names the value by which runs are
    compared, and `higher_is_better` says how. images_s is the median step's and dropped_fraction the mean,
    both over the last epoch of training (the whole run if that is shorter, or an epoch's steps unknown,
    None), all ranks together. A run without a validation split has no values of the metric, and an empty
    expert_load.
    best has the best evaluation after the first step, of the moving average if there is one: its step and
    value. stopped_early says where and why training ended before its duration, if it did.
    """
    records = read_records(run.metrics)
    steps = [record for record in records if record["kind"] == "step"]
    last = steps[-epoch_steps:] if epoch_steps else steps
    evaluations = [record for record in records if record["kind"] == "eval"]
    averages = [record for record in records if record["kind"] == "eval_ema"]
    first = [record for record in evaluations if record["step"] == 0]
    summary = {
        "primary": metric.primary,
        "higher_is_better": metric.higher_is_better,
        **({"validation_sets": [*config.data.val]} if isinstance(config.data.val, dict) else {}),
        **_values(evaluations[-1:], "eval_", ""),
        **_values(averages[-1:], "eval_ema_", "ema_"),
        **_values(first, "eval_", "first_"),
        **_best(averages or evaluations, "eval_ema_" if averages else "eval_", metric),
        **({"stopped_early": stopped_early} if stopped_early else {}),
        "images_s": median(record["images_s"] for record in last),
        "dropped_fraction": sum(record["dropped_fraction"] for record in last) / len(last),
        "expert_load": evaluations[-1]["eval_expert_load"] if evaluations else {},
        "wall_s": records[-1]["elapsed_s"],
        "steps": steps[-1]["step"],
        "world_size": world_size,
        "ep_size": config.parallel.ep_size,
        "zero_stage": config.parallel.zero_stage,
    }
    run.summary.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _values(records: Sequence[dict[str, Any]], prefix: str, new_prefix: str) -> dict[str, Any]:
    """The values of the metric in the first of some records of evaluations, if any, renamed."""
    return {
        f"{new_prefix}{name.removeprefix(prefix)}": value
        for record in records[:1]
        for name, value in record.items()
        if name.startswith(prefix) and not name.endswith(OF_EVERY_EVALUATION)
    }


def _best(records: Sequence[dict[str, Any]], prefix: str, metric: Metric) -> dict[str, Any]:
    """The step and the value of the best of some evaluations, the earliest of equal ones."""
    name, sign = f"{prefix}{metric.primary}", -1 if metric.higher_is_better else 1
    values = {r["step"]: value for r in records if r["step"] and (value := finite(r.get(name))) is not None}
    if not values:
        return {}
    step = min(values, key=lambda step: (sign * values[step], step))
    return {"best": {"step": step, metric.primary: values[step]}}


def render(
    summary: dict[str, Any], run: RunDirectory, metric: Metric, period: str = "the last epoch of training"
) -> str:
    """The summary as text for a terminal; `period` is what its figures of training are of."""
    minutes, seconds = divmod(round(summary["wall_s"]), 60)
    lines = [
        "",
        *_quality(summary, metric),
        *_decided(summary, metric),
        f"  training speed   {summary['images_s']:.0f} images/s over {summary['steps']} steps, "
        f"{minutes} min {seconds} s in all",
        f"  layout           {summary['world_size']} ranks, expert-parallel {summary['ep_size']}, "
        f"ZeRO stage {summary['zero_stage']}",
    ]
    if summary["expert_load"]:
        lines += [f"  dropped tokens   {summary['dropped_fraction']:.2%} in {period}", ""]
        lines += _load_table(summary["expert_load"])
    lines += [
        "",
        f"  run directory    {run.path}",
        f"  curves           {_tensorboard()} --logdir {run.path}",
        "",
    ]
    return "\n".join(lines)


def _quality(summary: dict[str, Any], metric: Metric) -> Iterator[str]:
    """A line for the weights, for their moving average and for what the run started from."""
    for title, prefix in (("evaluation", ""), ("moving average", "ema_"), ("at the start", "first_")):
        for name in ("", *(f"{name}_" for name in summary.get("validation_sets", [])[1:])):
            if f"{prefix}{name}{metric.primary}" in summary:
                values = {
                    key.removeprefix(f"{prefix}{name}"): value
                    for key, value in summary.items()
                    if key.startswith(f"{prefix}{name}")
                }
                yield f"  {name.rstrip('_') or title:<15}  {metric.line(values)}"


def _decided(summary: dict[str, Any], metric: Metric) -> Iterator[str]:
    """The best evaluation, unless it is the last, and why training stopped early."""
    best = summary.get("best", {})
    if best and best["step"] != summary["steps"]:
        yield f"  best             {metric.primary} {best[metric.primary]:.6g} at step {best['step']}"
    if "stopped_early" in summary:
        yield f"  training         {summary['stopped_early']}"


def _tensorboard() -> str:
    """The command as it can be typed here, whether or not the virtual environment is active."""
    return (
        "tensorboard"
        if which("tensorboard")
        else os.path.relpath(Path(sys.executable).with_name("tensorboard"))
    )


def _load_table(expert_load: dict[str, list[float]]) -> list[str]:
    """One line a layer: the share of tokens that each expert takes, and a bar of it."""
    width = max(len(layer) for layer in expert_load)
    lines = [f"  share of the tokens by expert in evaluation (even would be {1 / _experts(expert_load):.1%})"]
    for layer, shares in expert_load.items():
        bars = "".join(" ▁▂▃▄▅▆▇█"[min(8, round(share * len(shares) * 4))] for share in shares)
        shown = shares if len(shares) <= 16 else [max(shares), min(shares)]
        prefix = "" if len(shares) <= 16 else "max, min: "
        numbers = " ".join(f"{share:5.1%}" for share in shown)
        lines.append(f"    {layer:<{width}}  {bars}  {prefix}{numbers}")
    return lines


def _experts(expert_load: dict[str, list[float]]) -> int:
    return len(next(iter(expert_load.values())))
