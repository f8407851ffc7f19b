"""The end of a run as a person wants to read it, and the same figures as summary.json."""

import json
import os
import sys
from pathlib import Path
from shutil import which
from statistics import median
from typing import Any

from launcher.config.schema import RunConfig
from launcher.metrics.log import read_records
from launcher.rundir.directory import RunDirectory


def summarise(
    run: RunDirectory, config: RunConfig, *, world_size: int, epoch_steps: int | None
) -> dict[str, Any]:
    """Gather a finished run's figures from its metrics.jsonl and write summary.json.

    top1, top5 (of a classifier), loss and expert_load are of the last evaluation, first_top1 and first_loss
    of that before the first step (`train.eval_first`), where there is one; images_s is the median
    step's and dropped_fraction the mean, both over the last epoch of training (the whole run if that is
    shorter, or an epoch's steps unknown, None), all ranks together.
    """
    records = read_records(run.metrics)
    steps = [record for record in records if "loss" in record]
    last = steps[-epoch_steps:] if epoch_steps else steps
    evaluation = [record for record in records if "eval_loss" in record][-1]
    first: dict[str, Any] = next((record for record in records if record["step"] == 0), {})
    averaged: dict[str, Any] = next((record for record in reversed(records) if "eval_ema_loss" in record), {})
    summary = {
        **{name: evaluation[f"eval_{name}"] for name in ("top1", "top5") if f"eval_{name}" in evaluation},
        **{
            f"ema_{name}": averaged[f"eval_ema_{name}"]
            for name in ("top1", "loss")
            if f"eval_ema_{name}" in averaged
        },
        **{f"first_{name}": first[f"eval_{name}"] for name in ("top1", "loss") if f"eval_{name}" in first},
        "loss": evaluation["eval_loss"],
        "images_s": median(record["images_s"] for record in last),
        "dropped_fraction": sum(record["dropped_fraction"] for record in last) / len(last),
        "expert_load": evaluation["eval_expert_load"],
        "wall_s": records[-1]["elapsed_s"],
        "steps": steps[-1]["step"],
        "images": evaluation["eval_images"],
        "world_size": world_size,
        "ep_size": config.parallel.ep_size,
        "zero_stage": config.parallel.zero_stage,
    }
    run.summary.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def render(summary: dict[str, Any], run: RunDirectory, period: str = "the last epoch of training") -> str:
    """The summary as text for a terminal; `period` is what its figures of training are of."""
    minutes, seconds = divmod(round(summary["wall_s"]), 60)
    lines = [
        "",
        *_quality(summary),
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


def _quality(summary: dict[str, Any]) -> list[str]:
    if "top1" not in summary:
        return [
            f"  reconstruction   loss {summary['loss']:.4f} of {summary['images']} images",
            *([f"  at the start     loss {summary['first_loss']:.4f}"] if "first_loss" in summary else []),
        ]
    return [
        f"  top-1 accuracy   {summary['top1']:.2%} of {summary['images']} images",
        f"  loss             {summary['loss']:.4f}",
        *(
            [f"  at the start     {summary['first_top1']:.2%}, loss {summary['first_loss']:.4f}"]
            if "first_top1" in summary
            else []
        ),
        *(
            [f"  moving average   {summary['ema_top1']:.2%}, loss {summary['ema_loss']:.4f}"]
            if "ema_top1" in summary
            else []
        ),
    ]


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
