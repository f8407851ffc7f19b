"""tests/toy_task, a task that the product does not know: any layout, a kill, an evaluation on any ranks."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from launcher.cli.program import main
from launcher.config.load import load_config
from launcher.plan.base.hardware import load_hardware
from launcher.plan.memory.activations import activations_of
from launcher.plan.memory.estimate import predict_memory
from launcher.plan.memory.rank_params import params_of_fullest_rank
from launcher.plan.time.compute_cost import compute_cost
from launcher.plan.time.traffic import traffic
from launcher.tasks.registry import model_on_meta
from parallel.checkpoint.reader import CheckpointReader
from swin_moe import load_weights
from swin_moe.registry import build_backbone
from tests.distributed import RankError, run_on_ranks
from tests.launcher.running import CONFIG, command, commands, only, overrides, run_alone, steps
from tests.launcher.tasks.layouts import task_line
from tests.toy_task.data import pack_toy

STEPS = 4
LAST = f"step-{STEPS:08d}"
FIGURES = ("step", "loss", "aux_loss", "total_loss", "distance", "points", "lr", "grad_norm")
TOY = (
    "task=tests.toy_task:SPEC",
    "data.augment=null",
    "model.drop_path_rate=0.2",
    "model.moe.num_experts=4",
    "model.moe.routing_group_images=2",
    "train.micro_batch_size=4",
    f"train.duration={STEPS} steps",
    f"train.eval_every={STEPS} steps",
    "checkpoint.every=1 steps",
    "checkpoint.keep_last=9",
    "optim.optimizer=sgd",  # without momentum: the change of the weights in a step is the gradient
    "optim.momentum=0.0",
    "optim.weight_decay=0.0",
    "optim.max_grad_norm=0.0",
    "optim.warmup=0 steps",
    "optim.base_lr=3.2",  # of 512 images: 0.1 here
    "optim.min_lr=3.2",
)
LR = 0.1


def line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return task_line(overrides(shards, run_dir, *TOY, *more))


def layout(stage: int, ep_size: int) -> list[str]:
    return [f"parallel.zero_stage={stage}", f"parallel.ep_size={ep_size}"]


def stored(run: Path, step: int, kind: str) -> dict[str, Tensor]:
    """The tensors of a kind in a checkpoint."""
    reader = CheckpointReader(run / "checkpoints" / f"step-{step:08d}")
    return {name: reader[full] for name, full in reader.kind(kind).items()}


def gradients(run: Path) -> dict[str, Tensor]:
    """Of the second step, by the change of the master weights."""
    before, after = stored(run, 1, "master"), stored(run, 2, "master")
    found = {name: (before[name] - tensor) / LR for name, tensor in after.items()}
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    assert norm.item() == pytest.approx(steps(run)[1]["grad_norm"], rel=1e-3)
    return found


def evaluation(run: Path, name: str = LAST) -> dict[str, Any]:
    """The values of the metric, without the speed."""
    record: dict[str, Any] = json.loads((run / f"eval/{name}/evaluation.json").read_text())["modes"][0]
    return record | {"images_s": 0.0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 samples of an image, points and a label to train on, and 64 to evaluate."""
    return pack_toy(tmp_path_factory.mktemp("toy_shards"), 256, 64)


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, stage 1."""
    path = tmp_path_factory.mktemp("toy") / "run"
    outcome = run_alone(*line(shards, path, *layout(1, 1)))
    assert "  evaluation       nearest neighbour" in outcome.out
    return path


def assert_same_training(run: Path, wanted: Path) -> None:
    for record, other in zip(steps(run), steps(wanted), strict=True):
        assert only(record, FIGURES) == pytest.approx(only(other, FIGURES), rel=1e-6)
    found = gradients(run)
    for name, gradient in gradients(wanted).items():
        # atol: a weight near 1 changes in steps of 2^-24 or 2^-23, which the learning rate divides
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=2**-23 / LR)
    for kind in ("teacher", "state"):
        found, tensors = stored(run, STEPS, kind), stored(wanted, STEPS, kind)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)


LAYOUTS = [(2, 2, stage) for stage in range(4)] + [(2, 1, stage) for stage in range(4)]
LAYOUTS += [(4, ep_size, stage) for ep_size in (2, 4) for stage in range(4)]
BRIEF = [(2, 2, 0), (2, 2, 2)]


@pytest.mark.parametrize(
    ("ranks", "ep_size", "stage"),
    [*BRIEF, *(pytest.param(*one, marks=pytest.mark.slow) for one in LAYOUTS if one not in BRIEF)],
)
def test_every_layout_trains_alike(
    shards: Path, tmp_path: Path, alone: Path, ranks: int, ep_size: int, stage: int
) -> None:
    outcomes = run_on_ranks(command, ranks, *line(shards, tmp_path / "run", *layout(stage, ep_size)))
    assert [outcome.code for outcome in outcomes] == [0] * ranks, outcomes[0].err
    assert_same_training(tmp_path / "run", alone)


def test_it_learns_and_its_losses_are_told_apart(alone: Path) -> None:
    records = steps(alone)
    assert records[-1]["points"] < records[0]["points"]
    for record in records:
        assert record["loss"] == pytest.approx(record["distance"] + 0.5 * record["points"], rel=1e-6)
        assert record["total_loss"] == pytest.approx(record["loss"] + record["aux_loss"], rel=1e-6)
        assert record["aux_loss"] > 0


def test_teacher_and_state_by_hand(alone: Path) -> None:
    """The teacher is the average of the masters; the state counts the samples of all ranks."""
    before, masters = stored(alone, 1, "teacher"), stored(alone, 2, "master")
    for name, tensor in stored(alone, 2, "teacher").items():
        torch.testing.assert_close(tensor, 0.9 * before[name] + 0.1 * masters[name])
    state = stored(alone, STEPS, "state")
    assert state["samples"].item() == STEPS * 16
    assert state["centre"].abs().sum() > 0


def test_killed_and_resumed_on_another_layout(shards: Path, tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RankError, match="died"):
        run_on_ranks(partial(command, kill=("step", 3)), 2, *line(shards, run, *layout(2, 2)))
    saved = [path.name for path in (run / "checkpoints").glob("step-*")]
    assert "step-00000002" in saved
    assert f"step-{STEPS:08d}" not in saved
    run_alone(*line(shards, run, *layout(1, 1)))
    assert_same_training(run, alone)


def test_killed_and_resumed_is_the_same_run(shards: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_alone(*line(shards, whole, *layout(2, 1)))
    with pytest.raises(RankError, match="died"):
        run_on_ranks(partial(command, kill=("step", 3)), 1, *line(shards, killed, *layout(2, 1)))
    run_alone(*line(shards, killed, *layout(2, 1)))
    assert [only(record, FIGURES) for record in steps(killed)] == [only(one, FIGURES) for one in steps(whole)]
    for kind in ("master", "teacher", "state"):
        found, wanted = stored(killed, STEPS, kind), stored(whole, STEPS, kind)
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_the_planner_asks_the_task(shards: Path, tmp_path: Path) -> None:
    """Two views of four samples take what eight images do; the parts after the backbone are the task's."""
    config = load_config(CONFIG, overrides(shards, tmp_path, *TOY))
    plain = load_config(CONFIG, overrides(shards, tmp_path, *TOY[1:], "train.micro_batch_size=8"))
    both, one = (activations_of(each, each.parallel.dims(1), "cpu") for each in (config, plain))
    for part in ("stage 0", "stage 1"):
        assert dict(both.saved)[part] == dict(one.saved)[part]
    held = params_of_fullest_rank(config, config.parallel.dims(1))
    assert sum(held.all_elements) == sum(
        parameter.numel() for parameter in model_on_meta(config).parameters()
    )
    hardware = load_hardware("a100-40")
    cost = compute_cost(config, hardware)
    assert [part.name for part in cost.work.parts][-1] == "projector"
    seconds, dims = cost.compute_s(config, config.parallel.dims(1)), config.parallel.dims(1)
    teacher_s, eight = seconds.pop("teacher"), compute_cost(plain, hardware).compute_s(plain, dims)
    stages = [name for name in seconds if name.startswith("stage")]
    assert stages
    for name in stages:  # 16 samples: 4 micro-batches of 4 x 2 views, or 2 of 8 images
        assert seconds[name] == pytest.approx(2 * eight[name])
    assert 0.2 < teacher_s / sum(seconds.values()) < 0.7  # the forward pass of both passes


def test_the_planner_counts_the_teacher(shards: Path, tmp_path: Path) -> None:
    """It is complete on each rank, and its fp32 average is partitioned as the masters."""
    config = load_config(CONFIG, overrides(shards, tmp_path, *TOY, "parallel.zero_stage=2"))
    elements = sum(parameter.numel() for parameter in model_on_meta(config).parameters())
    for ranks in (1, 2):
        items = dict(predict_memory(config, [ranks], "cpu").items)
        assert items["teacher"] == 4 * elements
        assert items["teacher's average"] == pytest.approx(4 * elements / ranks, rel=0.01)
    config = load_config(CONFIG, overrides(shards, tmp_path, *TOY, "parallel.ep_size=2"))
    work = compute_cost(config, load_hardware("a100-40")).work
    rows = {collective.name: collective for collective in traffic(config, [2], work)}
    assert rows["teacher's rows forward"].sent_bytes == rows["rows forward"].sent_bytes > 0
    assert "teacher's rows backward" not in rows


@pytest.mark.parametrize("ranks", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4))])
def test_the_evaluation_is_of_no_layout(alone: Path, ranks: int) -> None:
    wanted = next(r for r in map(json.loads, (alone / "metrics.jsonl").open()) if "eval_neighbour" in r)
    outcomes = run_on_ranks(command, ranks, "eval", str(alone))
    assert [outcome.code for outcome in outcomes] == [0] * ranks, outcomes[0].err
    found = evaluation(alone)
    assert (found["neighbour"], found["images"]) == (wanted["eval_neighbour"], 64)
    assert found["ordered"] == pytest.approx(wanted["eval_ordered"], rel=1e-6)


def test_views_of_a_sample_are_averaged_on_any_ranks(alone: Path) -> None:
    """Three views: the same projections and loads of experts on both layouts, and others than of one view."""
    found = []
    for ranks, size in ((1, 32), (2, 7)):
        line = ("eval", str(alone), "toy.eval_views=3", f"train.eval_batch_size={size}")
        outcomes = run_on_ranks(command, ranks, *line)
        assert [outcome.code for outcome in outcomes] == [0] * ranks, outcomes[0].err
        found.append(evaluation(alone))
    one, two = found
    assert one["ordered"] == pytest.approx(two["ordered"], rel=1e-6)
    assert one["images"] == two["images"] == 64
    assert one["expert_load"] == two["expert_load"]
    run_alone("eval", str(alone))
    assert one["ordered"] != pytest.approx(evaluation(alone)["ordered"], rel=1e-4)


def test_the_teacher_is_evaluated(shards: Path, tmp_path: Path, alone: Path) -> None:
    """It is the student of the last step where the momentum is 0, and otherwise another model."""
    run, short = tmp_path / "run", ("toy.momentum=0.0", "train.duration=1 steps", "train.eval_every=1 steps")
    kinds = ([], ["--teacher"], ["--ema"])
    outcomes = run_on_ranks(
        commands, 1, [line(shards, run, *short), *(["eval", str(run), *kind] for kind in kinds)]
    )[0]
    assert [outcome.code for outcome in outcomes] == [0, 0, 0, 2], outcomes[0].err
    assert "train.ema_decay was 0" in outcomes[-1].err
    assert evaluation(run, "step-00000001-teacher") == evaluation(run, "step-00000001")
    evaluated = run_on_ranks(commands, 1, [["eval", str(alone), *kind] for kind in kinds[:2]])[0]
    assert [outcome.code for outcome in evaluated] == [0, 0], evaluated[0].err
    teacher, student = (evaluation(alone, f"{LAST}{which}")["ordered"] for which in ("-teacher", ""))
    assert teacher != pytest.approx(student, rel=1e-3)


def test_its_backbone_is_exported(alone: Path, tmp_path: Path) -> None:
    """Of the student and of the teacher, without the heads; and loaded into a backbone."""
    student, teacher = (tmp_path / f"{name}.safetensors" for name in ("student", "teacher"))
    lines = [["export", str(alone), str(student)], ["export", str(alone), str(teacher), "--teacher"]]
    outcomes = run_on_ranks(commands, 1, [*lines, ["export", str(alone), str(tmp_path / "ema"), "--ema"]])[0]
    assert [outcome.code for outcome in outcomes] == [0, 0, 2], outcomes[0].err
    assert "not used, the heads of the task: " in outcomes[0].out
    assert "without train.ema_decay" in outcomes[2].err
    for path, kind in ((student, "master"), (teacher, "teacher")):
        stored_tensors = stored(alone, STEPS, kind)
        wanted = {name: tensor for name, tensor in stored_tensors.items() if name.startswith("encoder.")}
        found = load_file(path)
        assert {f"encoder.{name}" for name in found} == wanted.keys()
        assert all(torch.equal(tensor, wanted[f"encoder.{name}"]) for name, tensor in found.items())
    model = build_backbone(load_config(CONFIG, overrides(alone, tmp_path, *TOY)).model)
    assert load_weights(model, teacher).loaded == len(load_file(teacher))


def test_it_answers_to_images(
    shards: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A third party's task: its projections of images alone have the metric of an evaluation."""
    run_alone("eval", str(alone))
    line = ["predict", str(alone), f"{shards}/val", "--json", "--pictures", str(tmp_path / "drawn")]
    assert main(line) == 0
    records = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    points = torch.tensor([record["projection"] for record in records], dtype=torch.float64)
    in_order = torch.arange(1, 65, dtype=torch.float64)
    ordered = (in_order @ points.norm(dim=1)).item() / 64
    assert ordered == pytest.approx(evaluation(alone)["ordered"], rel=1e-6)
    for record in records:
        [file] = record["pictures"]
        picture = np.asarray(PIL.Image.open(file))
        bright = int(torch.tensor(record["projection"]).argmax())
        assert np.argwhere(picture).tolist() == [[2, bright]]
    features = str(tmp_path / "features.safetensors")
    assert main(["predict", str(alone), f"{shards}/val", "--features", features]) == 0
    assert load_file(features)["features"].shape[0] == 64
    assert capsys.readouterr().out.startswith(f"{shards}/val#0: points around (")
    assert main(["deploy", str(alone), "--to", "safetensors"]) == 2
    assert "task=tests.toy_task:SPEC: its model has no classifier" in capsys.readouterr().err


def test_a_sweep_has_the_values_of_the_metric(alone: Path) -> None:
    """k-NN and the throughput are of the backbone, whatever the task."""
    options = ("--sweep-capacity", "0.5,0", "--knn", "3", "--throughput", "--passes", "1")
    outcome = run_alone("eval", str(alone), *options)
    header, *rows = (alone / f"eval/step-{STEPS:08d}/sweep.csv").read_text().splitlines()
    assert header == "capacity_factor,top_k,neighbour,ordered,dropped_fraction,images_s"
    assert [row.split(",")[0] for row in rows] == ["0.5", "0.0"]
    assert "  capacity  top_k  neighbour  ordered  dropped  images_s\n" in outcome.out
