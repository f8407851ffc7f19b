"""`swin-moe study run --slurm` on a real Slurm: an array that trains and evaluates, and again what failed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launcher.cli.program import main
from tests.launcher.running import TINY
from tests.slurm.conftest import ROOT, Cluster, Said, Say, damage, wait_until_gone

pytestmark = pytest.mark.slurm

GOOD, BAD, DENSE = "base_lr=0.001,seed=0", "base_lr=0.002,seed=0", "moe=none,seed=0"


def write(path: Path, shards: Path, bad: Path) -> None:
    """A study of three trials, one of which is told to train on damaged shards."""
    overrides = dict(text.split("=", 1) for text in TINY if text != "data.augment={}")
    overrides |= {"data.train": f"{shards}/train", "data.val": f"{shards}/val", "train.duration": "3 steps"}
    overrides |= {"optim.warmup": "1 steps", "data.bad_samples": "stop", "train.eval_every": "3 steps"}
    lines = [f"  {name}: {value}" for name, value in overrides.items()]
    path.write_text(
        "study_dir: study\n"
        f"config: {ROOT / 'configs' / 'debug.yaml'}\n"
        "overrides:\n" + "\n".join(lines) + "\n"
        "axes: {optim.base_lr: [0.001, 0.002]}\n"
        "include: [{model.moe: null}]\n"
        "where:\n"
        f"  - {{match: {{optim.base_lr: 0.002}}, set: {{data.train: {bad}}}}}\n"
        "evaluate: {capacity_factors: [0.5, 0], top_k: [1, 2]}\n"
    )


def test_an_array_of_trials_of_which_one_fails_and_is_submitted_again(
    cluster: Cluster, shards: Path, say: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def study(*arguments: str) -> Said:
        return Said(main(["study", *arguments]), *capsys.readouterr())

    def trials() -> dict[str, dict[str, Any]]:
        found = json.loads(study("status", "study.yaml", "--json").out)["cells"]
        return {trial["name"]: trial for trial in found}

    bad, runs = tmp_path / "bad", tmp_path / "study" / "cells"
    shutil.copytree(shards / "train", bad)
    for tar in bad.glob("*.tar"):
        damage(tar)
    write(tmp_path / "study.yaml", shards, bad)

    done = study("run", "study.yaml", "--slurm", "--nodes", "1")
    assert done.code == 0, done.err
    assert "array of 3 tasks" in done.out
    assert {trial["state"] for trial in trials().values()} <= {"queued", "running"}
    here = study("run", "study.yaml")
    assert (here.code, "trials in Slurm's queue" in here.err) == (2, True), here.err
    wait_until_gone(cluster, 600)

    table = study("status", "study.yaml").out
    assert {name: trial["state"] for name, trial in trials().items()} == {
        GOOD: "finished",
        BAD: "failed",
        DENSE: "finished",
    }, table + "".join(log.read_text() for log in runs.glob("*,*/slurm/log.txt"))
    assert "PreflightError: " in trials()[BAD]["reason"]
    rows = json.loads((runs / GOOD / "eval" / "step-00000003" / "sweep.json").read_text())["rows"]
    assert [(row["top_k"], row["capacity_factor"]) for row in rows] == [(1, 0.5), (1, 0), (2, 0.5), (2, 0)]
    assert (runs / DENSE / "eval" / "step-00000003" / "evaluation.json").exists()

    shutil.rmtree(bad)
    shutil.copytree(shards / "train", bad)
    before = (runs / GOOD / "metrics.jsonl").stat().st_mtime_ns
    done = study("run", "study.yaml", "--slurm", "--nodes", "1")
    assert done.code == 0, done.err
    assert "array of 1 tasks" in done.out
    wait_until_gone(cluster, 600)
    assert {trial["state"] for trial in trials().values()} == {"finished"}, study("status", "study.yaml").out
    assert (runs / GOOD / "metrics.jsonl").stat().st_mtime_ns == before
    assert "nothing is left to submit" in study("run", "study.yaml", "--slurm", "--nodes", "1").out
    rows_of_slurm = say("status", str(runs)).out.splitlines()[1:]
    assert [row.split()[3] for row in rows_of_slurm] == ["finished"] * 3
