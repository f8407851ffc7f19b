"""metrics.jsonl and TensorBoard of a run that goes on where an earlier session was killed."""

import json
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from launcher.config.load import load_config
from launcher.metrics.accumulator import LayerTotals
from launcher.metrics.heat_map import heat_map, labelled
from launcher.metrics.log import MetricsLog
from launcher.metrics.records import read_records
from launcher.rundir.directory import RunDirectory
from parallel.checkpoint.async_saver import SaveResult
from tests.launcher.running import CONFIG

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
HEAD = ("kind", "step", "epoch", "images", "time", "elapsed_s")  # of every record
TABLE = {
    "tokens_per_expert": {"first": [6, 2], "second": [4, 4]},
    "received_rows": {"first": [3, 3], "second": [8, 0]},
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def values(loss: float) -> dict[str, float]:
    return {"loss": loss, "images_s": 10.0, "dropped_fraction": 0.25, "data_wait_s": 0.002}


def metrics_log(run: RunDirectory, *, start_step: int, total_steps: int) -> MetricsLog:
    """Of a run with 32 images a step and 64 an epoch."""
    config = load_config(CONFIG, [f"run_dir={run.path}"])
    return MetricsLog(run, config, num_samples=64, start_step=start_step, total_steps=total_steps)


def session(run: RunDirectory, start: int, stop: int, loss: float) -> None:
    """The steps after `start` up to `stop`, each with this loss."""
    log = metrics_log(run, start_step=start, total_steps=9)
    for step in range(start + 1, stop + 1):
        log.step(step, values(loss), DATA, LAYERS, table=step % 3 == 0)
    log.close()


def test_no_records_yet(run: RunDirectory) -> None:
    assert read_records(run.metrics) == []


def test_a_line_that_a_kill_cut_short_is_no_record(run: RunDirectory) -> None:
    run.metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_records(run.metrics) == [{"kind": "step", "step": 1, "loss": 2.0}]


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
    log = metrics_log(run, start_step=0, total_steps=9)
    log.step(1, values(1.0), DATA, {}, table=True)
    log.evaluation(1, {"top1": 0.5, "loss": 1.5, "images": 64, "expert_load": {"layer": [1.0]}}, "line")
    step, evaluation = read_records(run.metrics)
    assert step.keys() == {*HEAD, "moe", "data", *values(1.0)}
    assert step["data"] == DATA
    assert step["moe"] == {}
    assert evaluation["eval_top1"] == 0.5
    assert evaluation["eval_expert_load"] == {"layer": [1.0]}
    log.close()


def test_every_record_says_what_it_is_of_and_when(run: RunDirectory) -> None:
    """32 images a step, 64 an epoch: step 3 is epoch 1.5."""
    before = datetime.now(UTC)
    log = metrics_log(run, start_step=0, total_steps=9)
    log.step(3, values(1.0), DATA, {}, table=False)
    log.evaluation(3, {"top1": 0.5}, "line")
    log.evaluation(3, {"top1": 0.5}, "line", "eval_ema_")
    log.save(SaveResult(step=3, bytes=9, copy_s=0.5, stall_s=0.5, save_s=1.0))
    log.close()
    found = read_records(run.metrics)
    assert [record["kind"] for record in found] == ["step", "eval", "eval_ema", "save"]
    assert [(record["step"], record["epoch"], record["images"]) for record in found] == [(3, 1.5, 96)] * 4
    for record in found:
        assert abs((datetime.fromisoformat(record["time"]) - before).total_seconds()) < 60


def test_records_of_earlier_versions_have_a_kind_when_they_are_read(run: RunDirectory) -> None:
    old = [{"step": 1, "loss": 1.0}, {"step": 1, "eval_top1": 0.5}, {"step": 1, "eval_ema_top1": 0.5}]
    run.metrics.write_text("".join(json.dumps(each) + "\n" for each in [*old, {"step": 1, "save_s": 2.0}]))
    assert [record["kind"] for record in read_records(run.metrics)] == ["step", "eval", "eval_ema", "save"]


def test_counters_of_the_data_go_on_where_the_earlier_session_was_saved(run: RunDirectory) -> None:
    """The streams count from 0 in each session; the last 5 bad samples of a rank are no counter."""
    for start in (0, 2):
        log = metrics_log(run, start_step=start, total_steps=9)
        for step in (start + 1, start + 2):
            counts = {"bytes": 100 * (step - start), "retries": 0, "recent_bad": 5}
            log.step(step, values(1.0), counts, {}, table=False)
        log.close()
    data = [record["data"] for record in read_records(run.metrics)]
    assert [each["bytes"] for each in data] == [100, 200, 300, 400]
    assert [each["recent_bad"] for each in data] == [5] * 4
    board = EventAccumulator(str(run.tensorboard)).Reload()
    assert [event.value for event in board.Scalars("data/bytes")] == [100, 200, 300, 400]
    assert "data/retries" not in board.Tags()["scalars"]  # never other than 0


def test_tensorboard_has_the_configuration(run: RunDirectory) -> None:
    session(run, 0, 1, loss=1.0)
    board = EventAccumulator(str(run.tensorboard)).Reload()
    (event,) = board.Tensors("config/text_summary")
    assert "num_experts: 8\n" in event.tensor_proto.string_val[0].decode()
    found = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    options = HParamsPluginData.FromString(found).session_start_info.hparams
    assert options["model.moe.num_experts"].number_value == 8
    assert options["optim.optimizer"].string_value == "adamw"


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
    assert (drawn == labelled(heat_map([[6, 2], [4, 4]]), list(LAYERS))).all()


@pytest.mark.parametrize(("rows", "columns", "cell"), [(2, 3, 16), (300, 4, 2)])
def test_names_stand_around_the_cells(rows: int, columns: int, cell: int) -> None:
    """The cells are unchanged in the lower right corner; names are light on black at the left and above."""
    cells = heat_map(np.arange(rows * columns).reshape(rows, columns).tolist(), cell)
    named = labelled(cells, [f"layer {i}" for i in range(rows)])
    _, height, width = cells.shape
    assert (named[:, -height:, -width:] == cells).all()
    margins = named[:, :-height].max(), named[:, :, :-width].max()
    assert min(margins) > 128
    assert named.shape[1] - height < 40


def test_progress_in_a_log_file(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    log = metrics_log(run, start_step=0, total_steps=2)
    log.step(1, values(2.0), DATA, {}, table=False)  # less than 15 s since the start: no line
    log.evaluation(1, {"top1": 0.5, "loss": 1.5, "images": 64}, "top-1 50.00%, loss 1.5000 on 64 images")
    log.step(2, values(2.0), DATA, {}, table=False)
    log.close()
    assert capsys.readouterr().err == (
        "step 1: top-1 50.00%, loss 1.5000 on 64 images\n"
        "step 2/2  loss 2.000  10 images/s  dropped 25.0%  data wait 2 ms  "
        "2 bad samples  3 replaced  ETA 0:00\n"
    )
