"""Runs of 40 steps of 16 of 256 images on two ranks, and what a resumed run must equal."""

import json
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from tests.launcher.running import (
    CONFIG,
    EXACT,
    EXACT_EVAL,
    evaluations,
    only,
    overrides,
    steps,
)

STEPS = 40
# saved before going on, so that it is known what a kill finds; see test_crash.py for the other way
LAYOUT = (
    "parallel.ep_size=2",
    "checkpoint.keep_last=9",
    "checkpoint.asynchronous=false",
    "train.ema_decay=0.9",
    "train.ema_warmup=true",
    "train.ema_warmup_gamma=20.0",
)
SCHEDULE = (f"train.duration={STEPS} steps", "train.eval_every=14 steps", "checkpoint.every=7 steps")


def train_line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return ["train", str(CONFIG), "--resume", "auto", *overrides(shards, run_dir, *LAYOUT, *SCHEDULE, *more)]


def engine(stage: int, precision: str) -> tuple[str, str]:
    return f"parallel.zero_stage={stage}", f"train.precision={precision}"


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Every master weight, moment and average of a run's last checkpoint, by name."""
    path = run_dir / "checkpoints" / f"step-{STEPS:08d}"
    shapes = json.loads((path / "manifest.json").read_text())["tensors"]
    values = {name: torch.full(shape, torch.nan) for name, shape in shapes.items()}
    dcp.load(values, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    return values


def assert_same_run(run_dir: Path, reference: Path) -> None:
    """Every step exactly once, with the very same figures, evaluations and final state."""
    assert [record["step"] for record in steps(run_dir)] == list(range(1, STEPS + 1))
    for found, wanted in zip(steps(run_dir), steps(reference), strict=True):
        assert only(found, EXACT) == only(wanted, EXACT)
    assert [only(record, EXACT_EVAL) for record in evaluations(run_dir)] == [
        only(record, EXACT_EVAL) for record in evaluations(reference)
    ]
    found, wanted = tensors(run_dir), tensors(reference)
    assert found.keys() == wanted.keys()
    assert any(name.startswith("ema/") and "experts.7" in name for name in wanted)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
