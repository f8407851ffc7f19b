"""The head of a report: what was run, and how to run it again."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.config.load import dump_config
from launcher.study.grid.trials import Study
from launcher.study.report.data import QualityMetric, ReportData
from launcher.study.report.labels import option
from launcher.study.report.reasons import no_metric

SHARED = (
    "task",
    "data.train",
    "data.val",
    "model.image_size",
    "model.embed_dim",
    "model.depths",
    "model.moe.blocks",
    "model.moe.num_experts",
    "model.moe.top_k",
    "model.moe.capacity_factor",
    "model.moe.router",
    "train.duration",
    "train.global_batch_size",
    "train.precision",
    "optim.optimizer",
    "optim.base_lr",
)  # of the configuration, where all trials agree


def about(data: ReportData, directory: Path) -> list[tuple[str, str]]:
    """Names and values for the head of the page."""
    study, results = data.study, data.results
    states = Counter(result.state for result in results)
    started = min((r.started for r in results if r.started), default="")
    ended = max((r.ended for r in results if r.ended), default="")
    hosts = sorted({r.host for r in results if r.host})
    ranks, images = (
        sorted({r.summary[name] for r in results if name in r.summary}) for name in ("world_size", "images")
    )
    return [
        ("trials", f"{len(results)}: " + ", ".join(f"{n} {state}" for state, n in states.most_common())),
        ("seeds", _listed(sorted({trial.seed for trial in study.trials}))),
        *[(name, _listed(values)) for name, values in study.axes.items()],
        ("evaluated at", _evaluated(study)),
        ("same in all trials", _shared(data)),
        ("images of an evaluation", _listed(images) or "–"),
        ("host, ranks a trial", f"{_listed(hosts) or '–'}; {_listed(ranks) or '–'}"),
        ("run from, to", f"{_time(started)} to {_time(ended)}" if started else "not started"),
        ("directory", str(directory)),
    ]


def commands(data: ReportData, directory: Path) -> list[str]:
    """The commands that do it again."""
    name = next((r.trial.name for r in data.results if r.evaluations), "NAME")
    run = f"{directory}/cells/{name}"
    factors = ",".join(f"{value:g}" for value in data.study.capacity_factors)
    sweep = f" --sweep-capacity {factors}" if factors else ""
    sweep += f" --sweep-top-k {','.join(map(str, data.study.top_k))}" if data.study.top_k else ""
    return [
        f"swin-moe train '{run}/config.yaml' --nproc N    # one trial",
        f"swin-moe eval '{run}'{sweep}",
        f"swin-moe study report {directory}    # this page",
    ]


def example_config(data: ReportData) -> tuple[str, str]:
    """A trial's name and its resolved configuration; empty where there is none."""
    return next(((r.trial.name, dump_config(r.config)) for r in data.results if r.config), ("", ""))


def notices(data: ReportData) -> list[str]:
    """What a reader should know before any number."""
    missing, texts = sum(result.state != "finished" for result in data.results), []
    if missing:
        verb = "is" if missing == 1 else "are"
        texts.append(f"{missing} of {len(data.results)} trials {verb} not finished: see the table below.")
    counts = data.seeds_of(data.settings)
    if counts == [1]:
        seeds = sorted({trial.seed for trial in data.study.trials})
        more = seeds if len(seeds) > 1 else [*seeds, seeds[-1] + 1]
        texts.append(
            "Every configuration has one seed, so no spread is known and any difference may be chance. "
            f"To add seeds: `seeds: {json.dumps(more)}` in the study's file."
        )
    elif counts[:1] == [1]:
        alone = sum(data.trials.groupby("configuration").size() == 1)
        texts.append(
            f"{alone} of {len(data.settings)} configurations {'has' if alone == 1 else 'have'} one seed: a "
            "difference between one of them and another may be chance."
        )
    return texts + [_incomplete(data, metric) for metric in data.incomplete_metrics]


def _incomplete(data: ReportData, metric: QualityMetric) -> str:
    why, _ = no_metric(data, metric.key)
    return f"{metric.title} is not compared: {why}."


def _evaluated(study: Study) -> str:
    factors = ", ".join(f"{value:g}" if value else "dropless" for value in study.capacity_factors)
    parts = [f"capacity {factors}" if factors else "", f"k = {_listed(study.top_k)}" if study.top_k else ""]
    return "; ".join(filter(None, parts)) or "as trained"


def _shared(data: ReportData) -> str:
    configs = [asdict(result.config) for result in data.results if result.config]
    texts = []
    for name in SHARED:
        values = [value for config in configs if (value := option(config, name)) is not None]
        if values and all(value == values[0] for value in values) and name not in data.study.axes:
            texts.append(f"{name}={_text(values[0])}")
    return ", ".join(texts) or "–"


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(_text, values))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _time(text: str) -> str:
    return text[:16].replace("T", " ")
