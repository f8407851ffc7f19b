"""What is told of a run by its directory alone."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.rundir.history import append
from launcher.rundir.paths import RunFiles, replace_json
from launcher.slurm.status import as_json, describe
from tests.messages import assert_names

PLACE = "all_to_all_single (parallel/ranks/collectives.py:55)"


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    """The second session of a run, once requeued, with a checkpoint of step 40."""
    run = RunFiles(tmp_path / "run")
    checkpoint = run.checkpoints / "step-00000040"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    (run.checkpoints / "latest").write_text("step-00000040\n")
    start = {"event": "start", "ranks": 2, "crash_budget": 5}
    append(run, {**start, "from_step": 0, "pid": 41, "job": {"id": "12", "restarts": 0}})
    append(run, {"event": "end", "code": 80, "reason": "lost rank 1 (node n2)", "by": "post-mortem"})
    append(run, {**start, "from_step": 40, "pid": 42, "job": {"id": "12", "restarts": 1}})
    return run


def rank(number: int, **more: Any) -> dict[str, Any]:
    quiet = {"pid": 1, "phase": "train", "place": PLACE, "is_collective": True, "still_s": 0.0, "age_s": 0.5}
    return {"rank": number, "node": f"n{number + 1}", "step": 57, **quiet, **more}


def beat(
    run: RunFiles, *ranks: dict[str, Any], ago_s: float = 1, ended: dict[str, Any] | None = None
) -> None:
    figures = {
        "step": 57,
        "total_steps": 100,
        "phase": "train",
        "loss": 2.5,
        "images_s": 640.0,
        "eta_s": 260.0,
    }
    who = {"world_size": 2, "host": "n1", "pid": 42, "job": {"id": "12", "restarts": 1}, "interval_s": 5.0}
    record = {"time": time.time() - ago_s, "ranks": ranks or (rank(0), rank(1)), "ended": ended}
    replace_json(run.progress, figures | who | record)


def test_a_run_that_goes_on(run: RunFiles) -> None:
    beat(run)
    lines = describe(run).splitlines()
    assert_names(lines[0], f"{run.path}: running", "57/100", "2.500", "640 images/s", "4 min")
    assert_names(lines[1], "1 s ago", "phase train", "2 ranks", "n1", "12")
    assert re.fullmatch(r"  checkpoint of step 40, \d+ s old", lines[2])
    assert re.fullmatch(
        r"  session 1 from step 0 \(\S+, job 12\): LOST_RANK 80: lost rank 1 \(node n2\)", lines[3]
    )
    assert re.fullmatch(r"  session 2 from step 40 \(\S+, job 12 requeued 1 times\): running", lines[4])
    assert lines[5:] == ["  requeued 1 times"]
    assert json.loads(json.dumps(as_json(run)))["checkpoint"]["step"] == 40


@pytest.mark.parametrize(
    ("ranks", "lagging"),
    [
        ((rank(0, still_s=40.0), rank(1, still_s=40.0)), []),
        ((rank(0), rank(1, age_s=16.0)), [1]),  # it says nothing any more
        ((rank(0, still_s=40.0), rank(1, still_s=41.0, is_collective=False, place="load (a.py:1)")), [1]),
        ((rank(0, still_s=40.0), rank(1, step=56)), [1]),
        ((rank(0), rank(1, step=50)), []),  # what it said last is some steps old
    ],
)
def test_ranks_that_lag(run: RunFiles, ranks: tuple[dict[str, Any], ...], lagging: list[int]) -> None:
    beat(run, *ranks)
    assert [each["rank"] for each in as_json(run)["lagging"]] == lagging
    assert ("  rank 1 (node n2) lags: at step 5" in describe(run)) == bool(lagging)


def test_a_run_that_fell_silent(run: RunFiles) -> None:
    beat(run, ago_s=60)
    text = describe(run)
    assert f"{run.path}: silent at step 57/100, loss 2.500, 640 images/s\n" in text
    assert f"presumably killed (no message left); last heartbeat at step 57, in {PLACE}" in text


def test_a_run_that_ended_and_was_cancelled(run: RunFiles) -> None:
    beat(run, ago_s=60, ended={"code": 75, "reason": "Stopped: x"})
    append(run, {"event": "end", "code": 75, "reason": "Stopped: x"})
    run.slurm.mkdir()
    run.cancelled.touch()
    text = describe(run)
    assert ": ended at step 57/100" in text
    assert ": stopped x\n" in text
    assert text.endswith(f"cancelled: it is not requeued; to continue: swin-moe slurm resume {run.path}")


def test_runs_of_which_little_is_known(tmp_path: Path, run: RunFiles) -> None:
    assert_names(describe(RunFiles(tmp_path / "none")), f"{tmp_path / 'none'}: no session")
    assert f"{run.path}: silent\n  no heartbeat\n" in describe(run)
    run.progress.write_text('{"step": 1')  # not ours to trust
    assert as_json(run)["state"] == "silent"
