"""metrics.jsonl and TensorBoard of a run that goes on where an earlier session was killed."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.metrics import MetricsLog, read_records
from launcher.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def values(loss: float) -> dict[str, float]:
    return {"loss": loss, "images_s": 10.0, "dropped_fraction": 0.25, "data_wait_s": 0.002}


def session(run: RunDirectory, start: int, stop: int, loss: float) -> None:
    """The steps after `start` up to `stop`, each with this loss."""
    log = MetricsLog(run, start_step=start, total_steps=9)
    for step in range(start + 1, stop + 1):
        log.step(step, values(loss), {"layer": [0.75, 0.25]})
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
    assert [event.value for event in board.Scalars("expert_load/layer/0")] == [0.75] * 9


def test_time_goes_on_where_the_earlier_session_was_saved(run: RunDirectory) -> None:
    earlier = [{"step": 1, "elapsed_s": 10.0}, {"step": 2, "elapsed_s": 1000.0}]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in earlier))
    session(run, 1, 2, loss=1.0)
    assert 10 <= read_records(run.metrics)[-1]["elapsed_s"] < 100


def test_records_are_there_before_the_log_is_closed(run: RunDirectory) -> None:
    log = MetricsLog(run, start_step=0, total_steps=9)
    log.step(1, values(1.0), {})
    log.evaluation(1, {"top1": 0.5, "loss": 1.5, "images": 64, "expert_load": {"layer": [1.0]}})
    step, evaluation = read_records(run.metrics)
    assert step.keys() == {"step", "elapsed_s", *values(1.0)}
    assert evaluation["eval_top1"] == 0.5
    assert evaluation["eval_expert_load"] == {"layer": [1.0]}
    log.close()


def test_progress_in_a_log_file(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    log = MetricsLog(run, start_step=0, total_steps=2)
    log.step(1, values(2.0), {})  # less than 15 s since the start: no line
    log.evaluation(1, {"top1": 0.5, "loss": 1.5, "images": 64})
    log.step(2, values(2.0), {})
    log.close()
    assert capsys.readouterr().err == (
        "step 1: top-1 50.00%, loss 1.5000 on 64 images\n"
        "step 2/2  loss 2.000  10 images/s  dropped 25.0%  data wait 2 ms  ETA 0:00\n"
    )
