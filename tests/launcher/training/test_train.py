"""A whole run, end to end: what it writes, what it says, and that it learns. A higher learning rate and finer
patches than configs/debug.yaml: the gratings are learned in seconds."""

import json
import re
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.config.load import load_config
from launcher.training.schedules import Schedule
from tests.distributed import run_on_ranks
from tests.launcher.running import (
    CONFIG,
    STEPS_AN_EPOCH,
    Outcome,
    command,
    commands,
    evaluations,
    overrides,
    records,
    run_alone,
    steps,
)

STEPS = 60
LEARNING = (
    "model.patch_size=2",
    "model.window_size=4",
    "model.init_std=0.1",
    "optim.base_lr=5e-2",
    "optim.warmup=4 steps",
    f"train.duration={STEPS} steps",
    "data.augment=null",
    "train.eval_every=1 epochs",
    "train.moe_load_every=25 steps",
    "checkpoint.every=1 epochs",
)
SCALARS = {
    "loss",
    "aux_loss",
    "total_loss",
    "lr",
    "grad_norm",
    "images_s",
    "data_wait_s",
    "dropped_fraction",
} | {
    "skipped_steps",
    "spikes",
    "elapsed_s",
}
MOE_FIGURES = {"dropped_fraction", "entropy", "load_cv", "load_max_over_mean", "received_max_over_mean"}
TABLE = {"tokens_per_expert", "received_rows"}
EVAL_KEYS = {"top1", "top5", "loss", "images", "images_s", "dropped_fraction", "expert_load"}
LAYER = "layers.1.blocks.1"


HEAD = {"kind", "step", "epoch", "images", "time", "elapsed_s"}  # of every record


class Run(NamedTuple):
    """A finished run and what it printed."""

    path: Path
    outcome: Outcome


def train_line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return ["train", str(CONFIG), *overrides(shards, run_dir, *LEARNING, *more)]


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One rank, fp32; only read."""
    path = tmp_path_factory.mktemp("train") / "run"
    outcome = run_alone(*train_line(shards, path))
    return Run(path, outcome)


def summary(path: Path) -> dict[str, Any]:
    return json.loads((path / "summary.json").read_text())


def test_the_run_directory(run: Run) -> None:
    assert sorted(path.name for path in run.path.iterdir()) == sorted(
        [
            "config.yaml",
            "metrics.jsonl",
            "summary.json",
            "progress.json",
            "sessions.jsonl",
            "tensorboard",
            "checkpoints",
            "lock",
        ]
    )
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
        "latest",
        "step-00000048",
        "step-00000060",
    ]
    assert (run.path / "checkpoints" / "latest").read_text() == "step-00000060\n"


def test_every_step_is_recorded(run: Run) -> None:
    found = steps(run.path)
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    for record in found:
        assert record.keys() - TABLE == SCALARS | HEAD | {"moe", "data"}
        assert record["images_s"] > 0
        assert record["data_wait_s"] >= 0
        assert 0 <= record["dropped_fraction"] < 1
        assert record["grad_norm"] > 0
        assert 0 < record["aux_loss"] < record["loss"]
        assert record["total_loss"] == pytest.approx(record["loss"] + record["aux_loss"], rel=1e-6)
        assert record["moe"].keys() == {LAYER}
        assert record["moe"][LAYER].keys() == MOE_FIGURES
        assert record["moe"][LAYER]["dropped_fraction"] == record["dropped_fraction"]  # of the only layer
    elapsed = [record["elapsed_s"] for record in records(run.path)]
    assert elapsed == sorted(elapsed)


def test_every_expert_s_load_at_intervals_and_at_the_end(run: Run) -> None:
    tables = {record["step"]: record for record in steps(run.path) if record.keys() >= TABLE}
    assert list(tables) == [25, 50, STEPS]
    assert not any(TABLE & record.keys() for record in steps(run.path) if record["step"] not in tables)
    for record in tables.values():
        tokens, (received,) = record["tokens_per_expert"][LAYER], record["received_rows"][LAYER]
        assert len(tokens) == 8
        assert sum(tokens) == 16 * 16 * 2  # images, tokens an image, choices
        dropped = round(record["dropped_fraction"] * sum(tokens))
        assert received == sum(tokens) - dropped
        assert record["moe"][LAYER]["load_max_over_mean"] == pytest.approx(max(tokens) / 64)


def test_the_learning_rates_are_those_of_the_schedule(run: Run) -> None:
    optim = load_config(run.path / "config.yaml").optim
    schedule = Schedule(optim, global_batch_size=16, total_steps=STEPS, steps=lambda text: 4)
    assert [record["lr"] for record in steps(run.path)] == [schedule(step) for step in range(STEPS)]


def test_evaluations_at_the_configured_steps_and_at_the_end(run: Run) -> None:
    found = evaluations(run.path)
    assert [record["step"] for record in found] == [
        STEPS_AN_EPOCH,
        2 * STEPS_AN_EPOCH,
        3 * STEPS_AN_EPOCH,
        STEPS,
    ]
    for record in found:
        assert record.keys() == {f"eval_{name}" for name in EVAL_KEYS} | HEAD
        assert record["eval_images"] == 64
        assert record["eval_dropped_fraction"] == 0  # dropless
        assert record["eval_expert_load"].keys() == {LAYER}
        assert sum(record["eval_expert_load"][LAYER]) == pytest.approx(1)


def test_it_learns(run: Run) -> None:
    losses = [record["loss"] for record in steps(run.path)]
    assert sum(losses[-8:]) / 8 < 0.85 * sum(losses[:8]) / 8
    assert evaluations(run.path)[-1]["eval_top1"] > 0.5  # chance is 0.1


def test_the_summary_gathers_the_records(run: Run) -> None:
    found, last = summary(run.path), evaluations(run.path)[-1]
    epoch = steps(run.path)[-STEPS_AN_EPOCH:]
    speeds = sorted(record["images_s"] for record in epoch)
    dropped = sum(record["dropped_fraction"] for record in epoch) / STEPS_AN_EPOCH
    best = max(evaluations(run.path), key=lambda record: (record["eval_top1"], -record["step"]))
    assert found == {
        "primary": "top1",
        "higher_is_better": True,
        "top1": last["eval_top1"],
        "top5": last["eval_top5"],
        "loss": last["eval_loss"],
        "images_s": (speeds[7] + speeds[8]) / 2,
        "dropped_fraction": pytest.approx(dropped),
        "expert_load": last["eval_expert_load"],
        "wall_s": records(run.path)[-1]["elapsed_s"],  # of the last save
        "steps": STEPS,
        "images": 64,
        "world_size": 1,
        "ep_size": 1,
        "zero_stage": 1,
        "best": {"step": best["step"], "top1": best["eval_top1"]},
    }


def test_the_printed_figures_are_the_summary(run: Run) -> None:
    figures, text = summary(run.path), run.outcome.out
    assert f"  evaluation       top-1 {figures['top1']:.2%}, top-5 " in text
    assert f", loss {figures['loss']:.4f} on 64 images\n" in text
    assert f"training speed   {figures['images_s']:.0f} images/s over 60 steps, 0 min" in text
    assert "layout           1 ranks, expert-parallel 1, ZeRO stage 1\n" in text
    assert f"dropped tokens   {figures['dropped_fraction']:.2%} in the last epoch" in text
    shares = " ".join(f"{share:5.1%}" for share in figures["expert_load"][LAYER])
    assert re.search(rf"^    {re.escape(LAYER)}  .{{8}}  {re.escape(shares)}$", text, re.MULTILINE)
    assert f"run directory    {run.path}\n" in text
    assert f"tensorboard --logdir {run.path}" in text


def test_tensorboard_has_the_same_curves(run: Run) -> None:
    board = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for name in SCALARS - {"elapsed_s"}:
        curve = [(event.step, event.value) for event in board.Scalars(f"train/{name}")]
        wanted = [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in steps(run.path)]
        assert curve == wanted
    assert [event.step for event in board.Scalars("eval/top1")] == [16, 32, 48, 60]
    for name in MOE_FIGURES:
        curve = [event.value for event in board.Scalars(f"moe/{name}/{LAYER}")]
        assert curve == pytest.approx([record["moe"][LAYER][name] for record in steps(run.path)], rel=1e-6)
    assert [event.step for event in board.Images("moe/load")] == [25, 50, STEPS]


def test_overrides_reach_the_configuration_beside_the_checkpoints(run: Run, shards: Path) -> None:
    assert load_config(run.path / "config.yaml") == load_config(
        CONFIG, overrides(shards, run.path, *LEARNING)
    )
    assert load_config(run.path / "config.yaml").optim.base_lr == 0.05


def test_resume_of_a_finished_run_trains_nothing_and_eval_agrees(run: Run, shards: Path) -> None:
    before, trained = (run.path / "metrics.jsonl").read_text(), summary(run.path)
    lines = [
        [*train_line(shards, run.path), "--resume", "auto"],
        ["eval", str(run.path)],
        ["eval", str(run.path), "--checkpoint", "step-00000048"],
        ["eval", str(run.path), "model.moe.eval_capacity_factor=0.25"],
    ]
    again, newest, older, dropping = run_on_ranks(commands, 1, lines)[0]
    assert again.out.endswith("\nalready finished (step 60 of 60): nothing to do\n")
    assert again.err == ""
    assert (run.path / "metrics.jsonl").read_text() == before
    assert summary(run.path) == trained

    exact, limited = newest.out.splitlines()
    assert exact.startswith(f"step-00000060 (step 60): {figures_of(trained)} on 64 images, ")
    assert exact.endswith(" images/s, 0.00% of the tokens' choices dropped")
    assert limited.startswith("  capacity 1.25 in routing groups of 4: top-1 ")
    earlier = {name: evaluations(run.path)[2][f"eval_{name}"] for name in ("top1", "top5", "loss")}
    assert older.out.startswith(f"step-00000048 (step 48): {figures_of(earlier)} on 64 ")
    assert dropping.out.splitlines()[1].startswith("  capacity 0.25 in routing groups of 4: top-1 ")
    assert not dropping.out.endswith(" 0.00% of the tokens' choices dropped\n")


def figures_of(found: dict[str, Any]) -> str:
    """As `eval` prints them."""
    return f"top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%}, loss {found['loss']:.4f}"


def test_eval_on_two_ranks_gives_the_same_digits(run: Run) -> None:
    first, second = run_on_ranks(command, 2, "eval", str(run.path))
    assert first.out.startswith(f"step-00000060 (step 60): {figures_of(summary(run.path))} on 64 images, ")
    assert second.out == ""


@pytest.mark.slow
def test_two_ranks_learn_the_same_in_bf16_nearly(run: Run, shards: Path, tmp_path: Path) -> None:
    line = train_line(shards, tmp_path / "run", "train.precision=bf16", "parallel.ep_size=2")
    first, second = run_on_ranks(command, 2, *line)
    assert first.code == second.code == 0
    assert second.out == second.err == ""
    fp32 = [record["loss"] for record in steps(run.path)]
    bf16 = [record["loss"] for record in steps(tmp_path / "run")]
    assert bf16 != fp32
    assert bf16 == pytest.approx(fp32, rel=0.02)
    assert sum(bf16[-16:]) == pytest.approx(sum(fp32[-16:]), rel=0.01)
    assert summary(tmp_path / "run")["world_size"] == summary(tmp_path / "run")["ep_size"] == 2


EXCHANGES = [
    pytest.param(("parallel.expert_exchange.strategy=auto",), marks=pytest.mark.slow),
    ("parallel.expert_exchange.strategy=dp", "parallel.expert_tensor_parallel_size=2"),
    pytest.param(
        ("parallel.expert_exchange.strategy=auto", "parallel.expert_tensor_parallel_size=2"),
        marks=pytest.mark.slow,
    ),
    ("parallel.expert_exchange.strategy=2", "parallel.expert_exchange.overlap=2"),
    ("parallel.expert_exchange.padded=true", "parallel.expert_exchange.hierarchical=true"),
]


@pytest.fixture(scope="module")
def short(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on one rank; only read."""
    path = tmp_path_factory.mktemp("short") / "run"
    assert [outcome.code for outcome in run_on_ranks(command, 1, *short_line(shards, path))] == [0]
    return path


def short_line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    options = ("train.duration=6 steps", "train.eval_every=null", "train.moe_load_every=null")
    return train_line(shards, run_dir, *options, *more)


def test_without_an_interval_the_last_step_alone_has_every_load(short: Path) -> None:
    assert [record["step"] for record in steps(short) if TABLE & record.keys()] == [6]


@pytest.mark.parametrize("options", EXCHANGES, ids=" ".join)
def test_no_way_of_exchange_changes_the_run(
    shards: Path, tmp_path: Path, short: Path, options: tuple[str, ...]
) -> None:
    line = short_line(shards, tmp_path / "run", "parallel.ep_size=2", *options)
    for outcome in run_on_ranks(command, 2, *line):
        assert outcome.code == 0, outcome.err
    assert load_config(tmp_path / "run" / "config.yaml") == load_config(CONFIG, line[2:])
    for found, wanted in zip(steps(tmp_path / "run"), steps(short), strict=True):
        for name in ("loss", "aux_loss", "grad_norm", "dropped_fraction"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-4)
    first, _ = run_on_ranks(command, 2, "eval", str(tmp_path / "run"))
    assert first.out.startswith(f"step-00000006 (step 6): top-1 {summary(short)['top1']:.2%}, ")


def test_the_exchange_is_the_configured_one(shards: Path, tmp_path: Path) -> None:
    options = ("parallel.expert_exchange.strategy=auto", "parallel.expert_tensor_parallel_size=2")
    line = short_line(shards, tmp_path / "run", "parallel.ep_size=2", *options)
    for rank, placement in enumerate(run_on_ranks(placement_of, 2, *line)):
        assert placement == (("auto", False, False, 1, "same"), (rank, rank + 1, 2))


def placement_of(*line: str) -> tuple[Any, Any]:
    """The exchange options and the expert slice of the model that a command trains on this rank."""
    placements = []

    def hook(event: str, trainer: Any) -> None:
        placements.append(trainer.task.model.get_submodule(f"{LAYER}.mlp").placement)
        raise KeyError(event)

    with pytest.raises(KeyError, match="start"):
        command(*line, hook=hook)
    return astuple(placements[0].options), astuple(placements[0].part)


def test_a_dense_model_and_a_final_partial_epoch(shards: Path, tmp_path: Path) -> None:
    options = (
        "model.moe=null",
        "train.duration=100 images",
        "checkpoint.every=null",
        "train.eval_every=null",
    )
    (outcome,) = run_on_ranks(command, 1, *train_line(shards, tmp_path / "run", *options))
    assert outcome.code == 0
    # 100 / 16 -> 7; then its evaluation and its save
    assert [record["step"] for record in records(tmp_path / "run")] == [*range(1, 8), 7, 7]
    assert all(record["dropped_fraction"] == 0 for record in steps(tmp_path / "run"))
    assert summary(tmp_path / "run")["expert_load"] == {}
    assert all(record["moe"] == {} and not TABLE & record.keys() for record in steps(tmp_path / "run"))
    assert "dropped tokens" not in outcome.out
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-00000007\n"


def test_without_a_validation_set(shards: Path, tmp_path: Path) -> None:
    """Nothing is evaluated at the intervals nor at the end; `eval` wants a split, and takes one."""
    run = tmp_path / "run"
    line = train_line(shards, run, "data.val=null", "train.duration=2 steps", "train.eval_first=true")
    lines = [
        [*line, "optim.warmup=1 steps"],
        [*line, "optim.warmup=1 steps", "--resume", "auto"],
        ["eval", str(run)],
        ["eval", str(run), f"data.val={shards}/val"],
    ]
    trained, again, refused, evaluated = run_on_ranks(commands, 1, lines)[0]
    assert trained.code == again.code == 0, trained.err + again.err
    assert "\n  evaluation data  none (data.val is null)\n" in trained.out
    assert "  evaluation   " not in trained.out.partition("step 0")[2]
    assert [record["step"] for record in steps(run)] == [1, 2]
    assert evaluations(run) == []
    assert "top1" not in summary(run)
    assert again.out.endswith("\nalready finished (step 2 of 2): nothing to do\n")
    assert refused.code == 2
    assert "data.val (null): there is nothing to evaluate; name a split, such as " in refused.err
    assert evaluated.out.startswith("step-00000002 (step 2): top-1 ")
