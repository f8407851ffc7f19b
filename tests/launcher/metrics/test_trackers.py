"""Trackers: what they get, how a session goes on in them, and that none of them can hold up a run."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.config.load import ConfigError
from launcher.errors import DivergedError
from launcher.metrics.records import read_records
from launcher.metrics.trackers.session import names_of, tracked_run
from launcher.validation.run_rules import run_errors
from tests.distributed import run_on_ranks
from tests.launcher.metrics.tracked_sessions import (
    OWN,
    VALUES,
    calls,
    config_of,
    log_of,
    own,
    processes_of,
    session,
    wait_for,
)
from tests.launcher.running import command, run_alone
from tests.launcher.short_run import line


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of this process and of its trackers lie; empty."""
    path = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


# --- the interface -----------------------------------------------------------------------------------


def test_a_tracker_of_another_package_gets_every_call(tmp_path: Path) -> None:
    log = log_of(tmp_path, own("FileTracker"), "seed=7")
    log.step(1, VALUES, {"bytes": 5, "retries": 0}, {}, table=False)
    log.evaluation(1, {"top1": 0.5, "images": 64}, "line")
    log.close("stopped")
    name = tmp_path.name
    assert calls(tmp_path) == [
        ["start", name, None, 0, 0, 1, 7],
        ["text", "config", 0, (tracked_run(config_of(tmp_path, own("FileTracker"), "seed=7"), 0, 0)).config],
        ["scalars", 1, {**{f"train/{key}": value for key, value in VALUES.items()}, "data/bytes": 5.0}],
        ["scalars", 1, {"eval/top1": 0.5}],
        ["end", "stopped"],
    ]


def test_the_next_session_gets_the_state_and_the_steps_that_come_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session(tmp_path, own("FileTracker"), stop=5)
    assert f"tracker {OWN}:FileTracker: see {tmp_path}/calls.jsonl\n" in capsys.readouterr().err
    session(tmp_path, own("FileTracker"), start_step=3, stop=4)
    starts = [call[3:6] for call in calls(tmp_path) if call[0] == "start"]
    assert starts == [[0, 0, 1], [3, 5, 2]]


def test_a_run_that_begins_anew_is_a_new_run_of_the_tracker(tmp_path: Path) -> None:
    session(tmp_path, own("FileTracker"), stop=5)
    session(tmp_path, own("FileTracker"), start_step=0, stop=4)
    assert [call[3:6] for call in calls(tmp_path) if call[0] == "start"] == [[0, 0, 1], [0, 0, 1]]


def test_the_state_of_a_tracker_that_cannot_be_read_begins_anew(tmp_path: Path) -> None:
    session(tmp_path, own("FileTracker"), stop=5)
    (tmp_path / "trackers" / f"{OWN}:FileTracker.json").write_text('{"x": ')
    session(tmp_path, own("FileTracker"), start_step=3, stop=4)
    assert [call[3:6] for call in calls(tmp_path) if call[0] == "start"] == [[0, 0, 1], [3, 5, 1]]


def test_names_of_runs_of_studies_and_job_arrays(tmp_path: Path) -> None:
    trial = tmp_path / "study" / "cells" / "top_k-2-seed-1"
    trial.mkdir(parents=True)
    assert names_of(trial) == ("top_k-2-seed-1", None)  # no study yet
    (tmp_path / "study" / "study.json").write_text("{}")
    assert names_of(trial) == ("top_k-2-seed-1", "study")
    (trial.parent / "000").symlink_to(trial)
    assert tracked_run(config_of(trial.parent / "000"), 0, 0).group == "study"
    task = tmp_path / "sweep" / "007"
    task.mkdir(parents=True)
    assert names_of(task) == ("007", None)
    (tmp_path / "sweep" / "slurm").mkdir()
    assert names_of(task) == ("sweep-007", "sweep")
    named = tracked_run(config_of(task, "tracking.name=a", "tracking.group=b"), 0, 0)
    assert (named.name, named.group) == ("a", "b")


def test_temporary_files_of_a_tracker_go_with_its_process(tmp_path: Path, temporary: Path) -> None:
    log = log_of(tmp_path, own("FileTracker"))
    wait_for(lambda: list(temporary.glob("swin-moe-tracker-*/*")))  # and so an empty list means something
    log.close()
    assert list(temporary.iterdir()) == []


def test_a_temporary_directory_that_cannot_be_made_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a full disk; TensorBoard, which needs none, goes on."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    session(tmp_path / "run", "tracking.end_timeout_s=120.0")
    assert " is off: " not in capsys.readouterr().err
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


# --- what fails ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason", "end_timeout_s"),  # a process may take long to start on a busy machine
    [
        ("RaisingTracker", "OSError: [Errno 28] No space left on device", 120.0),
        ("CrashingTracker", "its process ended with status 3", 120.0),
        pytest.param("LeavingTracker", "its process ended with status 0", 120.0, marks=pytest.mark.slow),
        ("EndlessTracker", "it did not end in time", 2.0),
        pytest.param("BlockedTracker", "it did not end in time", 2.0, marks=pytest.mark.slow),
    ],
)
def test_a_tracker_that_fails_is_switched_off_with_one_line(
    tmp_path: Path,
    temporary: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    reason: str,
    end_timeout_s: float,
) -> None:
    took_s = session(tmp_path, own(name), f"tracking.end_timeout_s={end_timeout_s}", stop=9)
    err = capsys.readouterr().err
    assert err.count(" is off: ") == 1
    assert f"tracker {OWN}:{name} is off: {reason}. The run goes on; {tmp_path}/metrics.jsonl has" in err
    assert "Traceback" not in err
    assert took_s < end_timeout_s + 28  # and not the 600 s that EndlessTracker sleeps
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [*range(1, 10)]
    assert processes_of(tmp_path) == []
    assert list(temporary.iterdir()) == []


def test_a_failure_is_counted_in_the_records_and_in_the_progress_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_of(tmp_path, own("CrashingTracker"))
    assert len(processes_of(tmp_path)) == 1  # and so an empty list elsewhere means something
    log.step(1, VALUES, {}, {}, table=False)
    deadline_s = time.monotonic() + 120
    while " is off: " not in capsys.readouterr().err:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
        log.evaluation(1, {"top1": 0.5}, "line")
    log.step(9, VALUES, {}, {}, table=False)
    log.close()
    assert "  1 trackers off  " in capsys.readouterr().err
    steps = [record for record in read_records(tmp_path / "metrics.jsonl") if record["kind"] == "step"]
    assert [record.get("trackers_off") for record in steps] == [None, 1]


def test_tensorboard_that_cannot_write_is_switched_off_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorboard").write_text("a file, not a directory")
    session(tmp_path)
    assert "tracker tensorboard is off: FileExistsError: " in capsys.readouterr().err
    assert len(read_records(tmp_path / "metrics.jsonl")) == 3


def test_a_rank_that_is_killed_leaves_a_session_that_failed(tmp_path: Path, temporary: Path) -> None:
    """The end of the pipe says so: the rank itself says nothing more, and removes nothing."""
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from tests.launcher.metrics.tracked_sessions import VALUES, log_of, own\n"
        "run = Path(sys.argv[1])\n"
        "log = log_of(run, own('FileTracker'))\n"
        "log.step(1, VALUES, {}, {}, table=False)\n"
        "path = run / 'calls.jsonl'\n"
        "while not path.exists() or 'scalars' not in path.read_text():\n"
        "    time.sleep(0.05)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, timeout=120)
    assert done.returncode == -9
    wait_for(lambda: calls(tmp_path)[-1] == ["end", "failed"])
    wait_for(lambda: list(temporary.glob("swin-moe-tracker-*")) == [])


# --- what check refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["tracking.trackers=[wandbb]"], "tracking.trackers (wandbb): no such tracker; did you mean wandb?"),
        (
            ["tracking.trackers=[comet]"],
            "tracking.trackers (comet): no such tracker; known here: tensorboard, wandb, mlflow, and dotted "
            "paths such as my_package.trackers:MyTracker",
        ),
        (
            ["tracking.trackers=['no.such:Tracker']"],
            "tracking.trackers (no.such:Tracker) cannot be imported: No module named 'no'",
        ),
        (
            [own("NoTracker")],
            f"tracking.trackers ({OWN}:NoTracker): {OWN}:NoTracker is no Tracker, see docs/extending.md",
        ),
        (
            [own("CarelessTracker")],
            f"tracking.trackers ({OWN}:CarelessTracker) cannot be checked: KeyError: 'missing'",
        ),
        (
            [own("FileTracker"), "tracking.options={bad: 3}"],
            "tracking.options.bad (3): leave it out",
        ),
        (
            ["tracking.trackers=[wandb]", "tracking.options={a: 3}"],
            "tracking.options (a) are of trackers of other packages, and tracking.trackers (['wandb']) names "
            "none",
        ),
    ],
)
def test_a_wrong_tracker_is_refused_before_the_run(tmp_path: Path, options: list[str], error: str) -> None:
    assert run_errors(config_of(tmp_path, *options)) == [error]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A directory wandb/, which W&B itself makes where it runs, is no package."""
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert run_errors(config_of(tmp_path, f"tracking.trackers=[{name}]")) == [
        f"tracking.trackers ({name}): the package {name} is not installed; pip install 'swin-moe[{name}]'"
    ]


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("tracking.trackers=[wandb, wandb]", "tracking.trackers (['wandb', 'wandb']) names a tracker twice"),
        ("tracking.project=a/b", "tracking.project ('a/b') must not contain /"),
        ("tracking.name=' '", "tracking.name (' ') must be printable text; leave it out where there is none"),
        ("tracking.wandb.entity=''", "tracking.wandb.entity ('') must be printable text"),
        ("tracking.mlflow.uri=http://me:secret@host", "tracking.mlflow.uri holds a password"),
        ("tracking.end_timeout_s=0.5", "tracking.end_timeout_s (0.5) must be at least 1"),
        ("tracking.wandb.mode=off", "tracking.wandb.mode: Input should be 'online' or 'offline' (got 'off')"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, option: str, error: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config_of(tmp_path, option)
    assert error in str(refused.value)
    assert "secret" not in str(refused.value)


# --- the end of a run -------------------------------------------------------------------------------------


def ends_of_three_sessions(arguments: list[str]) -> list[int]:
    """One session that diverges after a save, one that is stopped, one that finishes; their exit statuses."""

    def diverge(event: str, trainer: Any) -> None:
        if (event, trainer.step) == ("step", 6):
            raise DivergedError("10 steps in a row were skipped")

    def stop(event: str, trainer: Any) -> None:
        if (event, trainer.step) == ("step", 8):
            trainer.context.stop.signal, trainer.context.stop.since_s = signal.SIGTERM, time.monotonic()

    return [command(*arguments, hook=hook).code for hook in (diverge, stop, None)]


@pytest.mark.long
def test_each_session_ends_with_its_status_and_a_profile_of_its_steps(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = (own("FileTracker"), "tracking.end_timeout_s=60.0", "train.profile.steps=9..11")
    arguments = line(shards, run, *options, "checkpoint.asynchronous=false", ep_size=1)
    assert run_on_ranks(ends_of_three_sessions, 1, arguments) == [[83, 75, 0]]
    assert [call[1] for call in calls(run) if call[0] == "end"] == ["failed", "stopped", "finished"]
    assert [call[3:6] for call in calls(run) if call[0] == "start"] == [[0, 0, 1], [4, 6, 2], [9, 9, 3]]
    texts = sorted(path.name for path in (run / "profile").glob("*.txt"))
    assert texts == ["rank0_steps10-11.txt", "rank0_steps9-9.txt"]
    assert processes_of(run) == []


def test_a_finished_run_is_no_new_session_of_its_trackers(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = line(shards, run, own("FileTracker"), "tracking.end_timeout_s=60.0", ep_size=1)
    for _ in range(2):
        run_alone(*arguments)
    assert [call[0] for call in calls(run)].count("start") == 1
