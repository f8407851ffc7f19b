"""`swin-moe slurm` on a real Slurm: from one line to a finished run."""

import json
import shutil
import time
from pathlib import Path

import pytest

from launcher.metrics.records import read_records
from tests.launcher.running import TINY
from tests.slurm.conftest import ROOT, Cluster, Say, damage, wait_until_gone

pytestmark = pytest.mark.slurm

SHORT = (*TINY, "train.duration=4 steps", "optim.warmup=1 steps", "checkpoint.every=2 steps")
HARD = 'it\'s a; $(touch pwned) "run" %j é'


def run_of(shards: Path, run_dir: Path, *more: str) -> list[str]:
    data = [f"data.train={shards}/train", f"data.val={shards}/val", f"run_dir={json.dumps(str(run_dir))}"]
    return [str(ROOT / "configs" / "debug.yaml"), *SHORT, *data, *more]


def test_from_one_line_to_a_finished_run_with_a_hard_name(
    cluster: Cluster, shards: Path, say: Say, tmp_path: Path
) -> None:
    run_dir = tmp_path / HARD
    line = run_of(shards, Path(HARD), "parallel.ep_size=2", "train.micro_batch_size=4")
    done = say("submit", *line, "--nodes", "4")
    assert done.code == 0, done.err
    assert "4 nodes x 1 rank; world 4 = expert-parallel 2 x data-parallel 2, 1 x micro-batch 4" in done.out

    second = say("submit", *line, "--nodes", "4")
    assert second.code == 2
    assert f"has a job already: job {done.out.split()[1]}: " in second.err

    wait_until_gone(cluster)
    log = say("logs", str(run_dir), "--lines", "99").out
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["world_size"], summary["ep_size"]) == (4, 4, 2), log
    assert "start 1, on n[1-4]" in log
    assert [r["step"] for r in read_records(run_dir / "metrics.jsonl") if "loss" in r] == [1, 2, 3, 4]
    assert "finished" in say("status", str(run_dir)).out.lower()
    again = say("resume", str(run_dir))
    assert again.code == 2
    assert "is finished" in again.err
    assert not list(tmp_path.rglob("pwned"))


def test_what_cannot_train_or_be_queued_leaves_nothing(
    cluster: Cluster, shards: Path, say: Say, tmp_path: Path
) -> None:
    line = run_of(shards, tmp_path / "run")
    for more, message in (
        (("parallel.ep_size=6", "--nodes", "4"), "parallel.ep_size (6)"),
        ((f"data.train={tmp_path}/none", "--nodes", "1"), "make the shards first"),
        (
            ("--nodes", "1", "--mem", "999G"),
            "Memory specification can not be satisfied",
        ),  # sbatch's own words
        (("--nodes", "1", "--partition", "gold; rm"), "invalid partition specified"),
        (("--nodes", "1", "--job-name", "a\nb"), "--job-name"),
    ):
        done = say("submit", *line, *more)
        assert done.code == 2
        assert message in done.err
        assert len(done.err.splitlines()) <= 3
    assert not (tmp_path / "run").exists()
    assert cluster.run("squeue", "--noheader") == ""


def test_an_array_with_a_failing_task(cluster: Cluster, shards: Path, say: Say, tmp_path: Path) -> None:
    bad, run = tmp_path / "bad", tmp_path / "sweep"
    shutil.copytree(shards / "train", bad)
    for tar in bad.glob("*.tar"):
        damage(tar)
    tasks = [f"optim.base_lr={1 + i}e-3" for i in range(6)]
    tasks[4] += f" data.train={bad} data.bad_samples=stop"
    (tmp_path / "tasks.txt").write_text("# learning rates\n" + "\n".join(tasks) + "\n")
    done = say("submit", *run_of(shards, run), "--array", "tasks.txt", "--array-limit", "3")
    assert done.code == 0, done.err
    wait_until_gone(cluster)

    rows = json.loads(say("status", str(run), "--json").out)["tasks"]
    table = say("status", str(run)).out
    finished = [(run / f"{i:03d}" / "summary.json").exists() for i in range(6)]
    assert finished == [True, True, True, True, False, True], table
    assert rows[4]["state"] == "refused", rows[4]
    assert "PreflightError: " in rows[4]["refused"]
    assert [row.split()[3] for row in table.splitlines()[1:]] == [*["finished"] * 4, "refused", "finished"]

    shutil.rmtree(bad)
    shutil.copytree(shards / "train", bad)
    before = trained_at(run)
    done = say("resume", str(run))
    assert done.code == 0, done.err
    assert "array of 1 tasks" in done.out
    wait_until_gone(cluster)
    assert (run / "004" / "summary.json").exists(), say("logs", str(run), "--task", "4").out
    assert [i for i, (a, b) in enumerate(zip(before, trained_at(run), strict=True)) if a != b] == [4]


def trained_at(run: Path) -> list[int]:
    """When each task of six last trained, in nanoseconds; 0 for never."""
    paths = [run / f"{i:03d}" / "metrics.jsonl" for i in range(6)]
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]


def test_cancel_saves_and_resume_goes_on(cluster: Cluster, shards: Path, say: Say, tmp_path: Path) -> None:
    run = tmp_path / "run"
    long = ("train.duration=100000 steps", "checkpoint.every=100000 steps")
    assert say("submit", *run_of(shards, run, *long), "--nodes", "2").code == 0
    end = time.monotonic() + 100
    while not (run / "metrics.jsonl").exists():
        assert time.monotonic() < end, say("logs", str(run)).out
        time.sleep(0.3)
    assert "asked to save and stop" in say("cancel", str(run)).out
    wait_until_gone(cluster)
    steps = [r["step"] for r in read_records(run / "metrics.jsonl") if "loss" in r]
    assert (run / "checkpoints" / f"step-{steps[-1]:08d}").is_dir(), say("logs", str(run)).out
    dry = say("resume", str(run), "--nodes", "1", "--time", "5:00", "--dry-run")
    assert dry.code == 0, dry.err
    assert "#SBATCH --nodes=1\n" in dry.out
    assert "#SBATCH --time=00:05:00\n" in dry.out
