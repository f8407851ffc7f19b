"""Trackers: what they get, how a session goes on in them, and that none of them can hold up a run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.errors import DivergedError
from launcher.metrics.log import MetricsLog
from launcher.metrics.records import read_records
from launcher.metrics.trackers.session import names_of, tracked_run
from launcher.rundir.directory import RunDirectory
from launcher.validation.run_rules import run_errors
from tests.distributed import RankError, run_on_ranks
from tests.launcher.metrics import wandb_file
from tests.launcher.running import CONFIG, command, descendants, is_alive, records, run_alone
from tests.launcher.short_run import assert_same, line

OWN = "tests.launcher.metrics.own_trackers"
VALUES = {"loss": 2.0, "images_s": 10.0, "dropped_fraction": 0.25, "data_wait_s": 0.002}


def config_of(run: Path, *more: str) -> RunConfig:
    return load_config(CONFIG, [f"run_dir={run}", *more])


def log_of(run: Path, *more: str, start_step: int = 0) -> MetricsLog:
    """The log of a run of 9 steps."""
    config = config_of(run, *more)
    run.mkdir(exist_ok=True)
    return MetricsLog(RunDirectory(run), config, num_samples=64, start_step=start_step, total_steps=9)


def session(run: Path, *more: str, start_step: int = 0, stop: int = 3, **end: Any) -> float:
    """A session of steps after `start_step` up to `stop`; the seconds that its end took."""
    log = log_of(run, *more, start_step=start_step)
    for step in range(start_step + 1, stop + 1):
        log.step(step, VALUES, {}, {}, table=False)
    began_s = time.monotonic()
    log.close(**end)
    return time.monotonic() - began_s


def calls(run: Path) -> list[list[Any]]:
    return [json.loads(text) for text in (run / "calls.jsonl").read_text().splitlines()]


def own(name: str) -> str:
    return f"tracking.trackers=[{OWN}:{name}]"


def curves(found: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """What a tracker must have of the records of metrics.jsonl: the value of each curve by step."""
    wanted: dict[str, dict[int, float]] = {}
    for record in found:
        kind, step = record["kind"], record["step"]
        section, prefix = ("train", "") if kind == "step" else (kind, f"{kind}_")
        head = {"epoch", "elapsed_s"}
        named = {f"{section}/{k.removeprefix(prefix)}": v for k, v in record.items() if k not in head}
        for layer, figures in record.get("moe", {}).items():
            named |= {f"moe/{name}/{layer}": value for name, value in figures.items()}
        floats = {name: value for name, value in named.items() if isinstance(value, float)}
        floats |= {f"data/{name}": count for name, count in record.get("data", {}).items() if count}
        for name, value in floats.items():
            wanted.setdefault(name, {})[step] = value
    return wanted


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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str, end_timeout_s: float
) -> None:
    took_s = session(tmp_path, own(name), f"tracking.end_timeout_s={end_timeout_s}", stop=9)
    err = capsys.readouterr().err
    assert err.count(" is off: ") == 1
    assert f"tracker {OWN}:{name} is off: {reason}. The run goes on; {tmp_path}/metrics.jsonl has" in err
    assert "Traceback" not in err
    assert took_s < end_timeout_s + 28  # and not the 600 s that EndlessTracker sleeps
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [*range(1, 10)]
    assert processes_of(tmp_path) == []


def processes_of(run: Path) -> list[str]:
    """The processes of trackers that are still there, and what they started."""
    lines = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout
    ours = (f"--of {run}", "sleep 601.25")
    return [
        text for text in lines.splitlines() if any(word in text for word in ours) and "ps -wweo" not in text
    ]


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


def test_a_rank_that_is_killed_leaves_a_session_that_failed(tmp_path: Path) -> None:
    """The end of the pipe says so: the rank itself says nothing more."""
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from tests.launcher.metrics.test_trackers import VALUES, log_of, own\n"
        "run = Path(sys.argv[1])\n"
        "log = log_of(run, own('FileTracker'))\n"
        "log.step(1, VALUES, {}, {}, table=False)\n"
        "path = run / 'calls.jsonl'\n"
        "while not path.exists() or 'scalars' not in path.read_text():\n"
        "    time.sleep(0.05)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, timeout=120)
    assert done.returncode == -9
    wait_for(lambda: calls(tmp_path)[-1] == ["end", "failed"])


def wait_for(condition: Any) -> None:
    deadline_s = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)


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


# --- W&B and MLflow --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with both trackers that was killed at step 7 and resumed at 4; DIRECTORY/store is MLflow's."""
    directory = tmp_path_factory.mktemp("tracked")
    options = (
        "tracking.trackers=[wandb, mlflow]",
        "tracking.wandb.mode=offline",
        f"tracking.mlflow.uri={directory}/store",
        "tracking.project=p",
        "tracking.end_timeout_s=120.0",
        "checkpoint.asynchronous=false",
    )
    command_line = line(shards, directory / "run", *options, ep_size=1)
    with pytest.raises(RankError, match="died with exit code -9"):
        run_on_ranks(partial(command, kill=("step", 7)), 1, *command_line)
    wait_for(partial(has_failed, directory))
    killed = records(directory / "run")
    (directory / "killed.json").write_text(json.dumps(killed))
    run_alone(*command_line)
    return directory


def mlflow_client(directory: Path) -> Any:
    from mlflow.tracking import MlflowClient  # seconds, in the one worker that needs it

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    return MlflowClient(tracking_uri=(directory / "store").as_uri())


def mlflow_runs(directory: Path) -> list[Any]:
    client = mlflow_client(directory)
    experiment = client.get_experiment_by_name("p")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def has_failed(directory: Path) -> bool:
    """Whether the only run is over; false while its process writes a file, which the store cannot read."""
    try:
        return [one.info.status for one in mlflow_runs(directory)] == ["FAILED"]
    except ValueError:  # "Metric ... is malformed. No data found."
        return False


def test_tracking_does_not_change_the_run(tracked: Path, shards: Path, tmp_path: Path) -> None:
    run_alone(*line(shards, tmp_path / "run", "checkpoint.asynchronous=false", ep_size=1))
    assert_same(tracked / "run", tmp_path / "run")


def test_mlflow_has_one_run_with_every_value_once(tracked: Path) -> None:
    (run,) = mlflow_runs(tracked)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["model.moe.num_experts"] == "8"
    assert run.data.tags["run_dir"] == str(tracked / "run")
    client = mlflow_client(tracked)
    killed, wanted = json.loads((tracked / "killed.json").read_text()), curves(records(tracked / "run"))
    assert set(run.data.metrics) == set(wanted)
    found = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in wanted
    }
    possible = []  # the first value of a step stays; what was on its way when the rank was killed is lost
    for last in range(4, 8):
        before = curves([record for record in killed if record["step"] <= last])
        possible.append(
            {name: [*{**points, **before.get(name, {})}.items()] for name, points in wanted.items()}
        )
    assert found in possible
    text = Path(client.download_artifacts(run.info.run_id, "config.txt", str(tracked))).read_text()
    assert text == (tracked / "run" / "config.yaml").read_text()


def test_wandb_has_both_sessions_of_one_run_with_every_value(tracked: Path) -> None:
    """Offline each session has a file of its own; `wandb sync` puts them together by the id."""
    files = sorted((tracked / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # run-ID.wandb
    assert json.loads((tracked / "run" / "trackers" / "wandb.json").read_text()) == {"id": files[0].stem[4:]}
    assert [wandb_file.exit_codes(file) for file in files] == [[1], [0]]
    killed, every = json.loads((tracked / "killed.json").read_text()), records(tracked / "run")
    resumed = [record for record in every if record["step"] > 4]
    rows = wandb_file.rows(files[0])
    last = max(row["_step"] for row in rows)  # what was on its way when the rank was killed is lost
    assert last >= 4
    assert_history(rows, curves([record for record in killed if record["step"] <= last]))
    assert_history(wandb_file.rows(files[1]), curves(resumed))


def assert_history(rows: list[dict[str, Any]], wanted: dict[str, dict[int, float]]) -> None:
    """Each curve, by its own axis where it has one."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("_") or name.endswith("/step"):
                continue
            axis = row.get(f"{name.partition('/')[0]}/step", row["_step"])
            assert axis not in found.setdefault(name, {}), "twice"
            found[name][axis] = value
    assert found == wanted


def test_the_variables_of_wandb_and_mlflow_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "p")
    session(tmp_path / "run", "tracking.trackers=[wandb, mlflow]", "tracking.end_timeout_s=120.0")
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    (project,) = {one.run.project for one in wandb_file.records(file) if one.HasField("run")}
    assert project == "theirs"
    assert [run.info.status for run in mlflow_runs(tmp_path)] == ["FINISHED"]


def test_two_saves_that_end_in_one_step_are_two_points(tmp_path: Path) -> None:
    """W&B keeps one value of a name a row: the second save waits for the next row."""
    from parallel.checkpoint.async_saver import SaveResult

    log = log_of(
        tmp_path, "tracking.trackers=[wandb]", "tracking.wandb.mode=offline", "tracking.end_timeout_s=120.0"
    )
    log.step(5, VALUES, {}, {}, table=False)
    for step in (3, 4):
        log.save(SaveResult(step=step, bytes=9, copy_s=0.5, stall_s=0.5, save_s=float(step)))
    log.step(6, VALUES, {}, {}, table=False)
    log.close()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    saves = {row["save/step"]: row["save/s"] for row in wandb_file.rows(file) if "save/s" in row}
    assert saves == {3: 3.0, 4: 4.0}


def test_a_server_that_is_away_costs_nothing_but_its_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing listens at port 9; requests are tried again for minutes, the end of the run is not."""
    options = (
        "tracking.trackers=[mlflow]",
        "tracking.mlflow.uri=http://127.0.0.1:9",
        "tracking.end_timeout_s=1.0",
    )
    assert session(tmp_path, *options) < 30
    assert "tracker mlflow is off: " in capsys.readouterr().err
    assert processes_of(tmp_path) == []


def test_a_server_of_wandb_that_never_answers_is_left_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes connections and is silent; the process that W&B starts for the network ends too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_MODE", "online")
        log = log_of(tmp_path, "tracking.trackers=[wandb]", "tracking.end_timeout_s=2.0")
        wait_for(lambda: _children_of_tracker(tmp_path))
        log.step(1, VALUES, {}, {}, table=False)
        network = _children_of_tracker(tmp_path)
        began_s = time.monotonic()
        log.close()
    assert time.monotonic() - began_s < 30
    assert "tracker wandb is off: it did not end in time" in capsys.readouterr().err
    wait_for(lambda: not any(map(is_alive, network)))
    assert processes_of(tmp_path) == []


def _children_of_tracker(run: Path) -> list[int]:
    """The processes that the trackers of a run have started."""
    trackers = [int(text.split()[0]) for text in processes_of(run)]
    return [child for tracker in trackers for child in descendants(tracker)]
