"""What was run: the head of a report."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.config.load import dump_config
from launcher.study.grid.trials import Study
from launcher.study.report.findings import Findings

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
)  # of the configuration, where all cells agree


def about(findings: Findings, directory: Path) -> list[tuple[str, str]]:
    """Names and values for the head of the page."""
    study, results = findings.study, findings.results
    states = Counter(result.state for result in results)
    told = ", ".join(f"{count} {state}" for state, count in states.most_common())
    started = min((r.started for r in results if r.started), default="")
    ended = max((r.ended for r in results if r.ended), default="")
    hosts = sorted({r.host for r in results if r.host})
    ranks = sorted({r.summary["world_size"] for r in results if "world_size" in r.summary})
    images = sorted({r.summary["images"] for r in results if "images" in r.summary})
    return [
        ("cells", f"{len(results)}: {told}"),
        ("seeds", ", ".join(map(str, sorted({cell.seed for cell in study.cells})))),
        *[(name, ", ".join(map(_text, values))) for name, values in study.axes.items()],
        ("evaluated at", _evaluated(study)),
        ("same in all cells", _shared(findings)),
        ("images of an evaluation", ", ".join(map(str, images)) or "–"),
        ("host, ranks a cell", f"{', '.join(hosts) or '–'}; {', '.join(map(str, ranks)) or '–'}"),
        ("run from, to", f"{_time(started)} to {_time(ended)}" if started else "not started"),
        ("directory", str(directory)),
    ]


def commands(findings: Findings, directory: Path) -> list[str]:
    """What a reader types to do it again."""
    study = findings.study
    name = next((r.cell.name for r in findings.results if r.rows), "NAME")
    run = f"{directory}/cells/{name}"
    factors = ",".join(f"{value:g}" for value in study.capacity_factors)
    sweep = f" --sweep-capacity {factors}" if factors else ""
    sweep += f" --sweep-top-k {','.join(map(str, study.top_k))}" if study.top_k else ""
    return [
        f"swin-moe train '{run}/config.yaml' --nproc N    # one cell",
        f"swin-moe eval '{run}'{sweep}",
        f"swin-moe study report {directory}    # this page",
    ]


def example_config(findings: Findings) -> tuple[str, str]:
    """A cell's name and its resolved configuration; empty where there is none."""
    found = next((r for r in findings.results if r.config is not None), None)
    return (found.cell.name, dump_config(found.config)) if found and found.config else ("", "")


def _evaluated(study: Study) -> str:
    factors = ", ".join(f"{value:g}" if value else "dropless" for value in study.capacity_factors)
    top_k = ", ".join(map(str, study.top_k))
    return (
        "; ".join(filter(None, [factors and f"capacity {factors}", top_k and f"k = {top_k}"])) or "as trained"
    )


def _shared(findings: Findings) -> str:
    configs = [asdict(result.config) for result in findings.results if result.config]
    found = []
    for name in SHARED:
        values = [value for config in configs if (value := _option(config, name)) is not None]
        if values and all(value == values[0] for value in values) and name not in findings.study.axes:
            found.append(f"{name}={_text(values[0])}")
    return ", ".join(found) or "–"


def _option(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _time(text: str) -> str:
    return text[:16].replace("T", " ")


def notable(findings: Findings) -> Sequence[str]:
    """What a reader should know before any figure."""
    missing = [r for r in findings.results if r.state != "finished"]
    found = []
    if missing:
        found.append(
            f"{len(missing)} of {len(findings.results)} cells are not finished: see the table below."
        )
    if findings.groups and all(len(group.results) == 1 for group in findings.groups):
        found.append("Every configuration has one seed: no spread is known, and no difference can be judged.")
    return found
