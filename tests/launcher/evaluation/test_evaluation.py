"""`swin-moe eval`: the same on any layout, and what it computes against plain arithmetic."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from launcher.config.load import load_config
from launcher.evaluation.labels import FORMAT
from launcher.tasks.image_data import normalize_images
from swin_moe import build_model, load_weights
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import sample_keys
from tests.data_shards.streams import eval_stream
from tests.distributed import run_on_ranks
from tests.launcher.packed import pack_synthetic
from tests.launcher.running import CONFIG, Outcome, command, commands, overrides, run_alone

STEPS, IMAGES, GROUP = 16, 61, 4  # 61 images: no batch size and no group divides them
LAYER = "layers.1.blocks.1"
FIGURES = ("top1", "top5", "loss", "dropped_fraction")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_synthetic(tmp_path_factory.mktemp("odd"), 128, IMAGES, image_size=32, samples_per_shard=32)


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned a little."""
    path = tmp_path_factory.mktemp("evaluated") / "run"
    options = ("model.patch_size=2", "model.window_size=4", "model.init_std=0.1", "optim.base_lr=5e-2")
    more = (f"train.duration={STEPS} steps", "data.augment=null", "optim.warmup=4 steps")
    line = ["train", str(CONFIG), *overrides(shards, path, *options, *more)]
    run_alone(*line)
    return path


def read(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "eval" / f"step-{STEPS:08d}" / f"{name}.json").read_text())


def rows(run: Path, name: str) -> list[list[str]]:
    with (run / "eval" / f"step-{STEPS:08d}" / f"{name}.csv").open(newline="") as file:
        return list(csv.reader(file))


def evaluated(run: Path, ranks: int, *options: str) -> Outcome:
    outcome = run_on_ranks(command, ranks, "eval", str(run), *options)[0]
    assert outcome.code == 0, outcome.err
    return outcome


def results(run: Path, lines: list[list[str]], *names: str) -> list[Any]:
    """What `eval` writes with each of these options, as rank 0 finds it."""
    found = []
    for options in lines:
        outcome = command("eval", str(run), *options)
        assert outcome.code == 0, outcome.err
        found.append([read(run, name) for name in names] if dist.get_rank() == 0 else None)
        dist.barrier()
    return found


@pytest.fixture(scope="module")
def alone(run: Path) -> list[dict[str, Any]]:
    """Capacity 0.5, 1 and none on one rank with a batch of 64."""
    return run_on_ranks(results, 1, run, [sweep(64)], "sweep")[0][0][0]["rows"]


def sweep(batch: int) -> list[str]:
    return ["--sweep-capacity", "0.5,1,0", f"train.eval_batch_size={batch}"]


SLOW = pytest.mark.slow


@pytest.mark.parametrize("ranks", [*(pytest.param(n, marks=SLOW) for n in (1, 2, 4)), 3])
def test_no_rank_and_no_batch_size_changes_a_figure(
    run: Path, alone: list[dict[str, Any]], ranks: int
) -> None:
    assert [row["capacity_factor"] for row in alone] == [0.5, 1, 0]
    assert alone[0]["dropped_fraction"] > alone[1]["dropped_fraction"] > alone[2]["dropped_fraction"] == 0
    assert alone[0]["loss"] != pytest.approx(alone[2]["loss"], abs=1e-4)
    for (found,) in run_on_ranks(results, ranks, run, [sweep(7), sweep(64), sweep(250)], "sweep")[0]:
        for row, wanted in zip(found["rows"], alone, strict=True):
            assert (row["top1"], row["top5"], row["images"]) == (wanted["top1"], wanted["top5"], IMAGES)
            assert row["loss"] == pytest.approx(wanted["loss"], abs=1e-6)
            assert row["dropped_fraction"] == wanted["dropped_fraction"]  # whole numbers, no padding
            assert row["expert_load"] == wanted["expert_load"]


def test_both_modes_of_an_moe_are_the_sweep_s(run: Path, alone: list[dict[str, Any]]) -> None:
    printed = evaluated(run, 1, "--capacity-factor", "0.5", "train.eval_batch_size=7").out.splitlines()
    exact, limited = read(run, "evaluation")["modes"]
    for found, wanted in ((exact, alone[2]), (limited, alone[0])):
        assert [found[name] for name in FIGURES] == pytest.approx([wanted[name] for name in FIGURES])
    assert f"loss {exact['loss']:.4f} on {IMAGES} images" in printed[0]
    assert printed[1].startswith(
        f"  capacity 0.5 in routing groups of {GROUP}: top-1 {limited['top1']:.2%}, "
    )


def test_a_sweep_is_separate_evaluations(run: Path) -> None:
    """Each combination by a configuration of its own: other weights would not be met, nor a rebuilt model."""
    evaluated(run, 1, "--sweep-capacity", "0.5,1.25", "--sweep-top-k", "1,2")
    swept = read(run, "sweep")["rows"]
    assert [(row["top_k"], row["capacity_factor"]) for row in swept] == [
        (1, 0.5),
        (1, 1.25),
        (2, 0.5),
        (2, 1.25),
    ]
    lines = [
        [f"model.moe.top_k={row['top_k']}", f"--capacity-factor={row['capacity_factor']}"] for row in swept
    ]
    for (found,), row in zip(run_on_ranks(results, 1, run, lines, "evaluation")[0], swept, strict=True):
        assert [found["modes"][1][name] for name in FIGURES] == [row[name] for name in FIGURES]
    table = rows(run, "sweep")
    assert table[0][:3] == ["capacity_factor", "top_k", "top1"]
    assert [float(row[4]) for row in table[1:]] == [row["loss"] for row in swept]


def logits_of(run: Path, images: torch.Tensor) -> torch.Tensor:
    """The exact logits of images (n, 3, S, S), one image at a time."""
    config = load_config(run / "config.yaml")
    model = build_model(config.model)
    load_weights(model, run)
    keys = sample_keys(0, torch.arange(len(images)))
    with torch.no_grad():
        pairs = zip(images.split(1), keys.split(1), strict=True)
        return torch.cat(
            [model.eval()(*pair, RoutingOverrides(capacity_factor=0.0)).logits for pair in pairs]
        )


def test_exact_is_one_image_at_a_time(run: Path, shards: Path) -> None:
    config = load_config(run / "config.yaml")
    with eval_stream(shards / "val", batch_size=IMAGES, image_size=16) as stream:
        (batch,) = stream
        logits = logits_of(run, normalize_images(batch["image"], config.data, torch.device("cpu")))
    evaluated(run, 1, "--confusion")
    exact = read(run, "evaluation")["modes"][0]
    losses = [float(row.logsumexp(0) - row[label]) for row, label in zip(logits, batch["label"], strict=True)]
    assert exact["loss"] == pytest.approx(sum(losses) / IMAGES, abs=1e-6)
    best = [int(row.argmax()) for row in logits]
    counts = [[0] * 10 for _ in range(10)]
    for label, taken in zip(batch["label"].tolist(), best, strict=True):
        counts[label][taken] += 1
    assert [list(map(int, row[1:])) for row in rows(run, "confusion")[1:]] == counts
    assert exact["top1"] == sum(counts[i][i] for i in range(10)) / IMAGES
    for name, images, accuracy, other, times in rows(run, "classes")[1:]:
        label = int(name.removeprefix("grating-"))
        assert int(images) == sum(counts[label])
        assert float(accuracy) == counts[label][label] / sum(counts[label])
        if int(times):
            assert counts[label][int(other.removeprefix("grating-"))] == int(times)
            assert int(times) == max(counts[label][:label] + counts[label][label + 1 :])
    accuracies = [float(row[2]) for row in rows(run, "classes")[1:]]
    assert accuracies == sorted(accuracies)


def test_affinity_sums_to_the_load_of_the_experts(run: Path) -> None:
    outcome = evaluated(run, 2, "--affinity", "train.eval_batch_size=7")
    load = read(run, "evaluation")["modes"][0]["expert_load"][LAYER]
    header, *table = rows(run, f"affinity-{LAYER}")
    assert header == ["class", *(f"expert_{i}" for i in range(8)), "choices"]
    assert sum(int(row[-1]) for row in table) == IMAGES * 16 * 2  # tokens an image, choices a token
    for row in table:
        assert sum(map(float, row[1:-1])) == pytest.approx(1)
    for expert in range(8):
        taken = sum(float(row[1 + expert]) * int(row[-1]) for row in table)
        assert taken / (IMAGES * 32) == pytest.approx(load[expert])
    assert "which expert takes which classes: " in outcome.out
    picture = run / "eval" / f"step-{STEPS:08d}" / f"affinity-{LAYER}.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert list((run / "eval" / "tensorboard").iterdir())


def studies(batch: int) -> list[str]:
    return ["--few-shot", "3", "--knn", "5", "--bank", "100", f"train.eval_batch_size={batch}"]


def test_few_shot_and_neighbours_are_of_no_layout(run: Path) -> None:
    ((shots, knn),) = run_on_ranks(results, 1, run, [studies(64)], "few_shot", "knn")[0]
    assert len(shots["top1"]) == len(shots["seeds"]) == 3
    assert shots["mean"] == pytest.approx(sum(shots["top1"]) / 3)
    assert 0.1 < shots["mean"] <= 1
    assert 0.1 < knn["top1"] <= knn["top5"] <= 1
    assert knn["bank"] == 100
    assert run_on_ranks(results, 2, run, [studies(7)], "few_shot", "knn")[0] == [[shots, knn]]


def test_throughput(run: Path) -> None:
    outcome = evaluated(run, 2, "--throughput", "--passes", "3", "train.eval_batch_size=7")
    exact, limited = read(run, "throughput")["modes"]
    assert exact["batch_size"] == GROUP  # 7, in whole routing groups
    assert exact["repeats"] == 3
    assert exact["images_s"] == pytest.approx(2 * GROUP / exact["median_s"])
    assert exact["flop_s"] == pytest.approx(exact["images_s"] * exact["flops_an_image"])
    assert limited["way"] == "capacity 1.25 in routing groups of 4"
    assert "GFLOP/s; median" in outcome.out


def in_bf16(shards: Path, run: Path) -> list[Outcome]:
    """A run in bf16 with experts, evaluated as it was trained, and in fp32."""
    more = ["train.duration=2 steps", "data.augment=null", "train.precision=bf16", "optim.base_lr=5e-2"]
    train = ["train", str(CONFIG), *overrides(shards, run, *more, "model.moe.eval_capacity_factor=0")]
    return commands([train, ["eval", str(run), "--precision", "fp32"], ["eval", str(run)]])


def test_a_run_in_bf16_is_evaluated_in_bf16_to_the_last_bit(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    outcomes = run_on_ranks(in_bf16, 1, shards, path)[0]
    assert [outcome.code for outcome in outcomes] == [0] * 3, outcomes
    trained = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    during = next(record for record in reversed(trained) if "eval_loss" in record)
    assert outcomes[1].out.startswith("step-00000002 (step 2): top-1 ")
    assert outcomes[2].out.startswith("step-00000002 (step 2, bf16): top-1 ")
    fp32 = float(outcomes[1].out.partition("loss ")[2].partition(" on")[0])
    found = json.loads((path / "eval" / "step-00000002" / "evaluation.json").read_text())
    assert found["precision"] == "bf16"
    assert found["modes"][0]["loss"] == during["eval_loss"] == pytest.approx(fp32, rel=0.01)


REFUSED = [
    (["--affinity", "model.moe=null"], "--affinity is for models with experts"),
    (["--sweep-top-k", "9"], "--sweep-top-k (9) must lie in 1..model.moe.num_experts (8)"),
    (
        ["--confusion", "task=simmim"],
        "--confusion is for tasks with classes, such as classification; this run has task=simmim",
    ),
    (["--labels", "x.json", "task=simmim"], "--labels is for tasks with classes"),
    (["--few-shot", "5", "data.train=/x/{00..01}.tar"], "need a manifest of data.train"),
    (["--bank", "5"], "--bank is for --knn K"),
    (["--sweep-capacity", "1", "model.moe.router=soft", "model.moe.top_k=1"], "nothing to vary"),
    (["--labels", "/no/such/file"], "--labels /no/such/file: cannot read it"),
]


def test_what_makes_no_sense_is_refused_in_one_line(run: Path) -> None:
    lines = [["eval", str(run), *options] for options, _ in REFUSED]
    for outcome, (options, words) in zip(run_on_ranks(commands, 1, lines)[0], REFUSED, strict=True):
        assert outcome.code == 2, options
        assert outcome.err.count("\n") == 1
        assert words in outcome.err


def kinds(shards: Path, base: Path) -> list[list[str]]:
    """One step and evaluations of a dense run, of experts that choose, of soft experts and of SimMIM."""
    options = {
        "dense": ["model.moe=null"],
        "expert_choice": ["model.moe.router=expert_choice", "model.moe.eval_capacity_factor=1.0"],
        "soft": ["model.moe.router=soft", "model.moe.top_k=1"],
        "simmim": ["task=simmim", "simmim.mask_patch_size=8", "data.augment=null"],
    }
    found = []
    for name, chosen in options.items():
        path, more = base / name, ["train.duration=1 steps", "train.eval_every=null", "data.augment=null"]
        line = ["train", str(CONFIG), *overrides(shards, path, *more, *chosen)]
        studies = ("--few-shot", "2", "--knn", "3", "--bank", "32", "--throughput", "--passes", "1")
        lines = [line, ["eval", str(path)], ["eval", str(path), "train.eval_batch_size=7"]]
        outcomes = commands([*lines, ["eval", str(path), *studies]])
        assert [outcome.code for outcome in outcomes] == [0] * 4, outcomes
        found.append([outcome.out for outcome in outcomes[1:]])
    return found


@pytest.mark.slow
def test_every_kind_of_run(shards: Path, tmp_path: Path) -> None:
    dense, experts_choose, soft, simmim = run_on_ranks(kinds, 2, shards, tmp_path)[0]
    for one, other, studied in (dense, experts_choose, soft, simmim):
        figures = [line.partition(" images/s")[0].rpartition(",")[0] for line in one.splitlines()]
        assert figures == [line.partition(" images/s")[0].rpartition(",")[0] for line in other.splitlines()]
        assert [word in studied for word in ("2-shot top-1", "3-NN top-1", "GFLOP/s")] == [True] * 3
    assert [len(kind[0].splitlines()) for kind in (dense, experts_choose, soft, simmim)] == [1, 1, 1, 2]
    assert "(step 1), capacity 1 in routing groups of 4: top-1" in experts_choose[0]
    assert "(step 1): reconstruction loss" in simmim[0]
    assert "  capacity 1.25 in routing groups of 4: reconstruction loss" in simmim[0]


def test_labels_through_the_command(run: Path, tmp_path: Path) -> None:
    """The classes turned round and back: by a map of the model's, and by the right classes of each image."""
    with eval_stream(load_config(run / "config.yaml").data.val, batch_size=8, image_size=16) as stream:
        labels = stream.labels().tolist()
    turned = {"model_classes": [9 - i for i in range(10)], "images": [[9 - label] for label in labels]}
    (tmp_path / "turned.json").write_text(json.dumps({"format": FORMAT, **turned}))
    (tmp_path / "short.json").write_text(json.dumps({"format": FORMAT, "images": [[0]]}))
    lines = [[], ["--labels", str(tmp_path / "turned.json")]]
    plain, mapped = run_on_ranks(results, 1, run, lines, "evaluation")[0]
    for found, wanted in zip(mapped[0]["modes"], plain[0]["modes"], strict=True):
        assert [found[name] for name in FIGURES] == pytest.approx([wanted[name] for name in FIGURES])
    (short,) = run_on_ranks(command, 1, "eval", str(run), "--labels", str(tmp_path / "short.json"))
    assert short.code == 2
    assert f"images has 1 entries, data.val {IMAGES} images" in short.err
