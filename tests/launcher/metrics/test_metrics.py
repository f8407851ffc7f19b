"""metrics.jsonl and TensorBoard of a run that goes on where an earlier session was killed."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.metrics.accumulator import LayerTotals
from launcher.metrics.heat_map import heat_map
from launcher.metrics.log import MetricsLog, read_records
from launcher.rundir.directory import RunDirectory

LAYERS = {
    "first": LayerTotals(tokens=[6, 2], dropped=2, entropy=0.5, received=[3, 3]),
    "second": LayerTotals(tokens=[4, 4], dropped=0, entropy=0.25, received=[8, 0]),
}
FIGURES = {
    "first": {
        "dropped_fraction": 0.25,
        "entropy": 0.5,
        "load_cv": 0.5,
        "load_max_over_mean": 1.5,
        "received_max_over_mean": 1.0,
    },
    "second": {
        "dropped_fraction": 0.0,
        "entropy": 0.25,
        "load_cv": 0.0,
        "load_max_over_mean": 1.0,
        "received_max_over_mean": 2.0,
    },
}
DATA = {"bytes": 2048, "bad_samples": 2, "replaced": 3, "retries": 0}
TABLE = {
    "tokens_per_expert": {"first": [6, 2], "second": [4, 4]},
    "received_rows": {"first": [3, 3], "second": [8, 0]},
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def values(loss: float) -> dict[str, float]:
    return {"loss": loss, "images_s": 10.0, "dropped_fraction": 0.25, "data_wait_s": 0.002}


def session(run: RunDirectory, start: int, stop: int, loss: float) -> None:
    """The steps after `start` up to `stop`, each with this loss."""
    log = MetricsLog(run, start_step=start, total_steps=9)
    for step in range(start + 1, stop + 1):
        log.step(step, values(loss), DATA, LAYERS, table=step % 3 == 0)
    log.close()


def test_no_records_yet(run: RunDirectory) -> None:
    assert read_records(run.metrics) == []


def test_a_line_that_a_kill_cut_short_is_no_record(run: RunDirectory) -> None:
    run.metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_records(run.metrics) == [{"step": 1, "loss": 2.0}]


def test_records_up_to_a_step(run: RunDirectory) -> None:
    run.metrics.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 2, 3)))
    assert [record["step"] for record in read_records(run.metrics, up_to_step=2)] == [1, 2, 2]


def test_a_resumed_session_replaces_what_it_takes_again(run: RunDirectory) -> None:
    session(run, 0, 5, loss=1.0)
    with run.metrics.open("a") as file:
        file.write('{"step": 6, "lo')  # killed here; the last checkpoint is step 3
    session(run, 3, 9, loss=2.0)
    found = read_records(run.metrics)
    assert [(record["step"], record["loss"]) for record in found] == [
        *((step, 1.0) for step in (1, 2, 3)),
        *((step, 2.0) for step in range(4, 10)),
    ]
    board = EventAccumulator(str(run.tensorboard)).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [
        (record["step"], record["loss"]) for record in found
    ]
    assert [event.step for event in board.Images("moe/load")] == [3, 6, 9]


def test_time_goes_on_where_the_earlier_session_was_saved(run: RunDirectory) -> None:
    earlier = [{"step": 1, "elapsed_s": 10.0}, {"step": 2, "elapsed_s": 1000.0}]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in earlier))
    session(run, 1, 2, loss=1.0)
    assert 10 <= read_records(run.metrics)[-1]["elapsed_s"] < 100


def test_records_are_there_before_the_log_is_closed(run: RunDirectory) -> None:
    log = MetricsLog(run, start_step=0, total_steps=9)
    log.step(1, values(1.0), DATA, {}, table=True)
    log.evaluation(1, {"top1": 0.5, "loss": 1.5, "images": 64, "expert_load": {"layer": [1.0]}}, "line")
    step, evaluation = read_records(run.metrics)
    assert step.keys() == {"step", "elapsed_s", "moe", "data", *values(1.0)}
    assert step["data"] == DATA
    assert step["moe"] == {}
    assert evaluation["eval_top1"] == 0.5
    assert evaluation["eval_expert_load"] == {"layer": [1.0]}
    log.close()


def test_figures_of_the_layers_every_step_and_tables_when_asked(run: RunDirectory) -> None:
    session(run, 0, 4, loss=1.0)
    found = read_records(run.metrics)
    assert [record["moe"] for record in found] == [FIGURES] * 4
    assert {name: found[2][name] for name in TABLE} == TABLE
    assert not any(name in found[i] for name in TABLE for i in (0, 1, 3))


def test_tensorboard_has_the_figures_and_a_picture_of_the_loads(run: RunDirectory) -> None:
    session(run, 0, 4, loss=1.0)
    board = EventAccumulator(str(run.tensorboard)).Reload()
    for layer, figures in FIGURES.items():
        for name, value in figures.items():
            curve = [(event.step, event.value) for event in board.Scalars(f"moe/{name}/{layer}")]
            assert curve == [(step, value) for step in range(1, 5)]
    (event,) = board.Images("moe/load")
    with Image.open(BytesIO(event.encoded_image_string)) as picture:
        drawn = np.asarray(picture).transpose(2, 0, 1)
    assert (drawn == heat_map([[6, 2], [4, 4]])).all()


def test_progress_in_a_log_file(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    log = MetricsLog(run, start_step=0, total_steps=2)
    log.step(1, values(2.0), DATA, {}, table=False)  # less than 15 s since the start: no line
    log.evaluation(1, {"top1": 0.5, "loss": 1.5, "images": 64}, "top-1 50.00%, loss 1.5000 on 64 images")
    log.step(2, values(2.0), DATA, {}, table=False)
    log.close()
    assert capsys.readouterr().err == (
        "step 1: top-1 50.00%, loss 1.5000 on 64 images\n"
        "step 2/2  loss 2.000  10 images/s  dropped 25.0%  data wait 2 ms  "
        "2 bad samples  3 replaced  ETA 0:00\n"
    )
