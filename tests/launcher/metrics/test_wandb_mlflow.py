"""W&B and MLflow: what they have of a run that was killed and went on, and servers that do not answer."""

import json
import os
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import RankError, run_on_ranks
from tests.launcher.metrics import wandb_file
from tests.launcher.metrics.tracked_sessions import (
    VALUES,
    curves,
    log_of,
    processes_of,
    session,
    wait_for,
)
from tests.launcher.running import command, descendants, is_alive, records, run_alone
from tests.launcher.short_run import assert_same, line

pytestmark = pytest.mark.long


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
