"""A study that nobody ran: every figure follows from a formula, so that a report of it can be judged."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.config.load import dump_config, load_config
from launcher.study.grid.trials import Study, Trial, run_directory, write_study

CONFIG = Path(__file__).parents[3] / "configs" / "demo_cpu.yaml"
MOE = "model.moe."
FACTORS, CHOICES = (0.5, 1.0, 1.25, 0.0), (1, 2)
NOISE = (0.0, 0.004, -0.004, 0.002)  # of the loss, by seed
LAYERS = ("layers.0.blocks.1", "layers.1.blocks.1")
STEPS = 120


def moe(num_experts: int, capacity_factor: float = 1.25, *, priority: bool = True) -> dict[str, Any]:
    """The axes of a trial with experts."""
    return {
        f"{MOE}num_experts": num_experts,
        f"{MOE}capacity_factor": capacity_factor,
        f"{MOE}batch_prioritized": priority,
    }


def trial(axes: Mapping[str, Any], seed: int = 0, name: str | None = None) -> Trial:
    """A trial; its name says its axes."""
    parts = [f"{option.rpartition('.')[2]}={value}" for option, value in axes.items()]
    return Trial(name=name or ",".join([*parts, f"seed={seed}"]), axes=dict(axes), seed=seed)


def study(trials: Sequence[Trial], name: str = "a study") -> Study:
    """The study of some trials; what they differ in are its axes."""
    axes: dict[str, list[Any]] = {}
    for each in trials:
        for option, value in each.axes.items():
            if value is not None and value not in axes.setdefault(option, []):
                axes[option].append(value)
    varying = {option: values for option, values in axes.items() if len(values) > 1}
    return Study(name=name, axes=varying, trials=tuple(trials), capacity_factors=FACTORS, top_k=CHOICES)


def loss_of(each: Trial, capacity_factor: float | None = None, top_k: int = 1) -> float:
    """1.0 E^-0.1, more where tokens are dropped, less with more choices, and the noise of the seed."""
    num_experts = each.axes.get(f"{MOE}num_experts", 1)
    trained = each.axes.get(f"{MOE}capacity_factor", 1.25) or 2.0
    short = (
        0.0
        if num_experts == 1
        else sum(
            weight * max(0.0, 1.25 - (f or 2.0))
            for weight, f in ((0.08, trained), (0.05, capacity_factor or 0.0))
        )
    )
    lost = short * (1.0 if each.axes.get(f"{MOE}batch_prioritized", True) else 1.5)
    return num_experts**-0.1 + lost + NOISE[each.seed] - 0.003 * max(0, top_k - 1)


def top1_of(loss: float) -> float:
    """An accuracy that falls with the loss."""
    return round(0.9 - 0.3 * loss, 6)


def dropped_of(capacity_factor: float) -> float:
    """The share of choices without a slot."""
    return max(0.0, 1 - capacity_factor / 1.3) if capacity_factor else 0.0


def figures(each: Trial, capacity_factor: float, top_k: int) -> dict[str, Any]:
    """One evaluation."""
    loss = loss_of(each, capacity_factor, top_k)
    return {
        "way": "exact" if not capacity_factor else f"capacity {capacity_factor:g}",
        "capacity_factor": capacity_factor,
        "top_k": top_k,
        "top1": top1_of(loss),
        "top5": min(1.0, top1_of(loss) + 0.25),
        "loss": loss,
        "images": 10_000,
        "images_s": 4000.0
        / (1 + 0.2 * top_k)
        / (1 + 0.1 * (capacity_factor or 2.0))
        * (1 + 0.02 * each.seed),
        "dropped_fraction": dropped_of(capacity_factor),
        "expert_load": {},
    }


def write_trial(root: Path, each: Trial, *, evaluated: bool = True) -> Path:
    """The run directory of a finished trial."""
    run = run_directory(root, each)
    run.mkdir(parents=True)
    overrides = [f"{name}={json.dumps(value)}" for name, value in each.axes.items()]
    config = load_config(
        CONFIG, ["model.embed_dim=24", f"run_dir={json.dumps(str(run))}", f"seed={each.seed}", *overrides]
    )
    (run / "config.yaml").write_text(dump_config(config))
    write_session(run, 0, "finished")
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _metrics(each)))
    exact = figures(each, 0.0, config.model.moe.top_k if config.model.moe else 0)
    dropped = dropped_of(config.model.moe.capacity_factor) if config.model.moe else 0.0
    summary = {name: exact[name] for name in ("top1", "top5", "loss", "images")} | {
        "images_s": 900.0 + 10 * each.seed,
        "dropped_fraction": dropped,
        "steps": STEPS,
        "wall_s": 20.0,
        "world_size": 1,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    if evaluated:
        _evaluate(run, each, dense=config.model.moe is None)
    return run


def write_session(run: Path, code: int | None, reason: str, step: int = STEPS) -> None:
    """A session that ended so; one that has not if code is None."""
    run.mkdir(parents=True, exist_ok=True)
    at, pid = "2026-01-02T03:04:05+0000", 4242
    lines: list[dict[str, Any]] = [{"time": at, "event": "start", "from_step": 0, "ranks": 1, "pid": pid}]
    lines += [] if code is None else [{"time": at, "event": "end", "code": code, "reason": reason}]
    (run / "sessions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    beat = {
        "time": 0.0,
        "interval_s": 5.0,
        "host": "node<1>",
        "pid": pid,
        "step": step,
        "total_steps": STEPS,
        "ranks": [],
    }
    (run / "progress.json").write_text(json.dumps(beat | {"phase": "train", "job": None, "world_size": 1}))


def write_all(root: Path, trials: Sequence[Trial], name: str = "a study") -> Path:
    """A study whose trials are all finished."""
    write_study(root, study(trials, name))
    for each in trials:
        write_trial(root, each)
    return root


def grid() -> list[Trial]:
    """Capacity x priority at 8 experts, three more numbers of experts, and dense: three seeds."""
    axes = [moe(8, f, priority=p) for p in (True, False) for f in (0.5, 1.0, 1.25)]
    axes += [moe(e) for e in (4, 16, 32)] + [{"model.moe": None}]
    return [trial(each, seed) for each in axes for seed in (0, 1, 2)]


def _metrics(each: Trial) -> list[dict[str, Any]]:
    lines = []
    for step in range(1, STEPS + 1):
        record: dict[str, Any] = {"step": step, "loss": 2.3 - step / STEPS, "moe": {}}
        if "model.moe" not in each.axes:
            f = each.axes.get(f"{MOE}capacity_factor", 1.25)
            for i, layer in enumerate(LAYERS):
                dropped = dropped_of(f) + (0.2 + 0.1 * i) / (1 + 0.1 * step)
                record["moe"][layer] = {
                    "dropped_fraction": dropped,
                    "load_max_over_mean": 1 + (2 + i) / step**0.5,
                }
        lines.append(record)
    return lines


def _evaluate(run: Path, each: Trial, *, dense: bool) -> None:
    directory = run / "eval" / f"step-{STEPS:08d}"
    directory.mkdir(parents=True)
    if dense:
        record: dict[str, Any] = {"ranks": 1, "modes": [figures(each, 0.0, 0)]}
        (directory / "evaluation.json").write_text(json.dumps(record))
        return
    rows = [figures(each, factor, top_k) for top_k in CHOICES for factor in FACTORS]
    (directory / "sweep.json").write_text(json.dumps({"ranks": 1, "rows": rows}))


def trouble() -> dict[str, Trial]:
    """Trials that did not get to their end, by what became of them."""
    extra = {"optim.base_lr": 1e9}
    return {
        "failed": trial(moe(8) | extra, name="a<b>&amp;'c\""),
        "stopped": trial(moe(8) | extra, 1),
        "waiting": trial(moe(8) | extra, 2),
        "killed": trial(moe(8) | extra, 3),
        "not evaluated": trial(moe(8, 0.5), 3),
        "broken": trial(moe(16), 3),
    }


def write_troubled(root: Path) -> Path:
    """The grid, and beside it one trial of every kind of trouble."""
    trials = trouble()
    write_study(root, study([*grid(), *trials.values()], "grid <i>&</i> trouble"))
    for each in grid():
        write_trial(root, each)
    write_session(run_directory(root, trials["failed"]), 83, "the loss is <nan> & stays so", 7)
    write_session(run_directory(root, trials["stopped"]), 75, "requested to stop", 60)
    write_session(run_directory(root, trials["killed"]), None, "", 33)
    write_trial(root, trials["not evaluated"], evaluated=False)
    broken = write_trial(root, trials["broken"])
    (broken / "summary.json").write_text(json.dumps({"steps": 3}))
    return root
