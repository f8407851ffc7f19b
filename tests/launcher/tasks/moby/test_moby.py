"""Runs of MoBY with experts: the first step by hand, any layout, a kill, skipped steps, an evaluation."""

import json
import math
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from data_shards.augment.view_augment import ViewAugment
from data_shards.format.fields import Field
from data_shards.format.samples import Source
from data_shards.order.sampling import TrainSampling
from data_shards.pack.write import pack
from data_shards.stream.train import TrainStream
from launcher.config.load import load_config
from launcher.config.task_sections import options_of
from launcher.tasks.moby.data import train_data
from launcher.tasks.moby.options import MoBYOptions
from launcher.tasks.moby.queues import initial_keys
from launcher.tasks.moby.task import momentum_at
from launcher.validation.run_rules import run_errors
from parallel.digest import joint_digest, tensor_digest
from swin_moe.heads.moby import build_moby, keys_of_view
from swin_moe.random.keyed import sample_keys
from tests.data_shards.image_folders import jpeg
from tests.data_shards.made_samples import MadeSamples
from tests.distributed import RankError, run_on_ranks
from tests.launcher.running import CONFIG, command, only, records, run_alone, steps
from tests.launcher.tasks.layouts import (
    Watcher,
    assert_same_gradients,
    assert_same_run,
    kill_and_resume,
    layout,
    results,
    stored,
)
from tests.launcher.tasks.moby.runs import BATCH, LR, STEPS, line, options

TERMS = ("positive_cosine", "negative_cosine", "momentum", "queue_age")
FIGURES = ("step", "loss", "aux_loss", "total_loss", *TERMS, "lr")
EVALUATED = ("knn", "alignment", "spread", "images", "expert_load")


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, two micro-batches of 8, stage 1."""
    path = tmp_path_factory.mktemp("moby") / "run"
    outcome = run_alone(*line(shards, path, *layout(1, 1, 8)))
    assert "  evaluation       20-NN top-1" in outcome.out
    assert "alignment" in outcome.out
    return path


def evaluation(run: Path) -> dict[str, Any]:
    """The values of the last evaluation by `eval`."""
    modes: list[dict[str, Any]] = json.loads((results(run) / "evaluation.json").read_text())["modes"]
    return modes[0]


def assert_same_training(run: Path, wanted: Path) -> None:
    for record, other in zip(steps(run), steps(wanted), strict=True):
        assert only(record, FIGURES) == pytest.approx(only(other, FIGURES), rel=1e-5, abs=1e-6)
        assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    for kind in ("teacher", "state"):
        found, tensors = stored(run, STEPS, kind), stored(wanted, STEPS, kind)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_momentum_in_closed_form() -> None:
    """0.99 before the first step, 0.995 halfway, 1 at the end and beyond; 1 - 0.01 (1 + cos(pi / 4)) / 2."""
    found = [momentum_at(0.99, step, 800) for step in (0, 400, 800, 900, 200)]
    assert found == pytest.approx([0.99, 0.995, 1.0, 1.0, 0.9914644660940673], abs=1e-12)
    assert momentum_at(0.0, 5, 10) == pytest.approx(0.5)
    assert [momentum_at(0.9, step, 10, 0.9) for step in (0, 3, 10)] == pytest.approx([0.9] * 3)


def test_momentum_and_age_are_logged(alone: Path) -> None:
    """m of step k, and the steps since the oldest key: 16 keys a step enter a queue of 48."""
    found = steps(alone)
    wanted = [1 - 0.3 * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(1, STEPS + 1)]
    assert [record["momentum"] for record in found] == pytest.approx(wanted, rel=1e-6)
    assert [record["queue_age"] for record in found] == [0, 1, 2, 3]
    for record in found:
        assert record["total_loss"] == pytest.approx(record["loss"] + record["aux_loss"], rel=1e-6)
        assert record["aux_loss"] > 0
        assert 0 < record["spread"] < 8**-0.5


def test_the_first_step_is_infonce_by_hand(shards: Path, tmp_path: Path, alone: Path) -> None:
    """In fp64, from the stream's views: of the step's 16 samples, each with the target's drop path off."""
    config = load_config(CONFIG, options(shards, tmp_path))
    moby = options_of(config, MoBYOptions)
    assert isinstance(config.data.train, str)
    sampling = TrainSampling(seed=config.seed, global_batch_size=BATCH, micro_batch_size=8)
    with TrainStream(config.data.train, sampling, train_data(config).transform) as stream:
        batches = list(islice(stream, 2))
    augment = ViewAugment(moby.colours, seed=config.seed, mean=config.data.mean, std=config.data.std)
    online, target = (build_moby(config.model, moby.head, seed=config.seed) for _ in range(2))
    queues = initial_keys(moby.queue, moby.head.out_dim, 2, config.seed).double()
    losses: list[float] = []
    for batch in batches:
        views = augment(batch["image"], batch.positions)
        keys = sample_keys(config.seed, batch.positions)
        queries = F.normalize(online.train()(views, keys).values.double(), dim=-1)
        target.eval()
        projections = [
            target.projector(target.encoder.forward_pooled(view, keys_of_view(keys, i))[0])
            for i, view in enumerate(views)
        ]
        for mine, other in ((0, 1), (1, 0)):
            positives = F.normalize(projections[other].double(), dim=-1)
            for query, positive in zip(queries[mine], positives, strict=True):
                logits = torch.cat([(query @ positive)[None], queues[other] @ query]) / moby.temperature
                losses.append(-logits.log_softmax(0)[0].item())
    assert len(losses) == 2 * BATCH
    assert steps(alone)[0]["loss"] == pytest.approx(2 * sum(losses) / len(losses), rel=1e-5)


def test_the_queues_hold_the_keys_of_the_last_steps_in_order(alone: Path) -> None:
    """64 keys into 48 rows: step 4 is in the first 16; the next step starts at row 16."""
    state = [stored(alone, step, "state") for step in range(1, STEPS + 1)]
    assert [int(one["enqueued"]) for one in state] == [16, 32, 48, 64]
    queues = [one["queues"] for one in state]
    for queue in queues:
        torch.testing.assert_close(queue.norm(dim=-1), torch.ones(2, 48))
    assert torch.equal(queues[3][:, 16:], queues[2][:, 16:])
    assert not torch.equal(queues[3][:, :16], queues[2][:, :16])
    assert torch.equal(queues[1][:, :16], queues[0][:, :16])


def test_the_target_is_the_average_by_hand(alone: Path) -> None:
    """target = m target + (1 - m) online; the predictor's average is kept, and computes nothing."""
    before, masters = stored(alone, 1, "teacher"), stored(alone, 2, "master")
    momentum = momentum_at(0.7, 2, STEPS)
    for name, tensor in stored(alone, 2, "teacher").items():
        torch.testing.assert_close(tensor, momentum * before[name] + (1 - momentum) * masters[name])


LAYOUTS = [(2, 2, stage, 4) for stage in range(4)] + [(2, 1, stage, 8) for stage in range(4)]
LAYOUTS += [(4, ep_size, stage, 4) for ep_size in (2, 4) for stage in range(4)]
LAYOUTS += [(1, 1, 0, 4), (1, 1, 3, 16), (1, 1, 2, 8)]
BRIEF = [(2, 2, 2, 4)]  # ranks, ep_size, ZeRO stage, micro-batch


@pytest.mark.parametrize(
    ("ranks", "ep_size", "stage", "micro"),
    [*BRIEF, *(pytest.param(*one, marks=pytest.mark.slow) for one in LAYOUTS if one not in BRIEF)],
)
def test_every_layout_trains_alike(
    shards: Path, tmp_path: Path, alone: Path, ranks: int, ep_size: int, stage: int, micro: int
) -> None:
    run = tmp_path / "run"
    outcomes = run_on_ranks(command, ranks, *line(shards, run, *layout(stage, ep_size, micro)))
    assert [outcome.code for outcome in outcomes] == [0] * ranks, outcomes[0].err
    assert_same_training(run, alone)
    assert_same_gradients(run, alone, LR)


@pytest.mark.slow
def test_norms_over_the_global_batch_on_two_ranks(shards: Path, tmp_path: Path) -> None:
    """As published, where they span the ranks; those of the target network too."""
    runs = tmp_path / "alone", tmp_path / "two"
    group = f"moby.head.norm_group_images={BATCH}"
    run_alone(*line(shards, runs[0], group, *layout(1, 1, 16)))
    outcomes = run_on_ranks(command, 2, *line(shards, runs[1], group, *layout(2, 2, 8)))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    assert_same_training(runs[1], runs[0])
    assert_same_gradients(runs[1], runs[0], LR)


@pytest.mark.slow
def test_six_steps_of_a_dense_model_on_two_ranks(shards: Path, tmp_path: Path) -> None:
    """Losses within 1e-5; those of experts over twenty steps: test_twenty_steps.py.

    They differ by 5e-8 at first, and about three times as much at each further step: in the seventh, by 1e-5.
    """
    more = ("model.moe=null", "train.duration=6 steps", "checkpoint.keep_last=1")
    more, runs = (*more, "optim.base_lr=0.32", "optim.min_lr=0.32"), (tmp_path / "a", tmp_path / "b")
    run_alone(*line(shards, runs[0], *more, *layout(0, 1, 16)))
    outcomes = run_on_ranks(command, 2, *line(shards, runs[1], *more, *layout(2, 1, 4)))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    for record, other in zip(steps(runs[1]), steps(runs[0]), strict=True):
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_killed_and_resumed_is_the_same_run(shards: Path, tmp_path: Path, alone: Path) -> None:
    """Bit for bit: losses, weights, target, queues."""
    killed = tmp_path / "killed"
    kill_and_resume(line(shards, killed, *layout(1, 1, 8)))
    figures = (*FIGURES, "spread", "grad_norm")
    assert_same_run(killed, alone, figures, STEPS, ("master", "teacher", "state"))


@pytest.mark.slow
def test_killed_and_resumed_on_another_layout(shards: Path, tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RankError, match="died"):
        run_on_ranks(partial(command, kill=("step", 2)), 2, *line(shards, run, *layout(2, 2, 4)))
    run_alone(*line(shards, run, *layout(1, 1, 8)))
    assert_same_training(run, alone)


def look_at_target(trainer: Any) -> list[Any]:
    """Digests of the target network and of the queues, and its gradients; the engine is to refuse step 3."""
    module = trainer.task.target.module
    target = joint_digest({name: tensor_digest(one) for name, one in module.named_parameters()})
    state = joint_digest({name: tensor_digest(one) for name, one in trainer.task.tensors().items()})
    trainer.engine._accept = lambda norm: trainer.step != 2
    return [target, state, any(one.requires_grad for one in module.parameters())]


def test_every_step_moves_the_target_and_a_skipped_one_nothing(shards: Path, tmp_path: Path) -> None:
    watcher = Watcher(tmp_path / "digests", look_at_target)
    more = ("moby.momentum=0.5", "train.duration=5 steps", "train.eval_every=null", "train.precision=bf16")
    (outcome,) = run_on_ranks(
        partial(command, hook=watcher), 1, *line(shards, tmp_path / "run", *more, *layout(1, 1, 8))
    )
    assert outcome.code == 0, outcome.err
    lines = watcher.seen()
    moved = [[one[i] != other[i] for i in range(2)] for one, other in zip(lines, lines[1:], strict=False)]
    assert moved == [[True, True], [True, True], [False, False], [True, True], [False, True]]  # m is 1 last
    assert not any(gradients for *_, gradients in lines)
    assert [record["skipped_steps"] for record in steps(tmp_path / "run")] == [0, 0, 1, 1, 1]
    kept = stored(tmp_path / "run", 5, "state")
    assert (kept["queues"].dtype, int(kept["enqueued"])) == (torch.float32, 4 * BATCH)


@pytest.mark.parametrize("ranks", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_the_evaluation_is_of_no_layout(alone: Path, ranks: int) -> None:
    (wanted,) = (record for record in records(alone) if "eval_knn" in record)
    outcomes = run_on_ranks(command, ranks, "eval", str(alone))
    assert [outcome.code for outcome in outcomes] == [0] * ranks, outcomes[0].err
    found = evaluation(alone)
    assert (found["knn"], found["images"]) == (wanted["eval_knn"], 64)
    assert found["alignment"] == pytest.approx(wanted["eval_alignment"], rel=1e-5)
    assert found["spread"] == pytest.approx(wanted["eval_spread"], rel=1e-5)


def test_features_of_the_centres(shards: Path, alone: Path, tmp_path: Path) -> None:
    """`predict` and `--knn` see the centre alone; the features are those of the encoder of the checkpoint."""
    path = tmp_path / "features.safetensors"
    outcome = run_alone("eval", str(alone), "--knn", "5", "--throughput", "--passes", "1")
    assert "5-NN top-1" in outcome.out
    outcome = run_alone("predict", str(alone), f"{shards}/val", "--json", "--features", str(path))
    said = torch.tensor([json.loads(text)["features"] for text in outcome.out.splitlines()])
    features = load_file(path)["features"]
    torch.testing.assert_close(said, features)
    assert features.shape == (64, 24)
    unit = F.normalize(features.double(), dim=1)
    spread = unit.std(dim=0, correction=0).mean().item()
    run_alone("eval", str(alone))
    assert evaluation(alone)["spread"] == pytest.approx(spread, rel=1e-4)


def image_alone(number: int) -> dict[str, Any]:
    return {"image": jpeg(number)}


def test_a_split_without_labels_has_no_knn(tmp_path: Path, alone: Path) -> None:
    """What is left is the agreement of the views."""
    rows, fields = MadeSamples(image_alone, np.arange(20)), (Field("image", "image"),)
    pack(Source("images", "made up", (), {"val": rows}, fields=fields), "val", tmp_path / "val")
    outcome = run_alone("eval", str(alone), f"data.val={tmp_path / 'val'}")
    assert "no k-NN" in outcome.out
    found = evaluation(alone)
    assert "knn" not in found
    assert found["alignment"] > 0
    assert found["images"] == 20


def pair_at_random(event: str, trainer: Any) -> None:
    """A hook that gives each sample the keys of another one in place of its own."""
    if event == "start":
        own = trainer.task.keys_of
        trainer.task.keys_of = lambda views, keys: own(views, keys).roll(5, dims=1)


LEARNING = (
    "model.moe=null",
    "model.drop_path_rate=0.0",
    "moby.colours={jitter_prob: 0.0, gray_prob: 0.0, blur_prob: [0.0, 0.0], solarize_prob: [0.0, 0.0]}",
    "moby.head.norm_group_images=16",
    "data.crop_scale=[0.6, 1.0]",
    "optim.optimizer=adamw",
    "optim.base_lr=0.1",
    "optim.min_lr=0.1",
    "train.duration=30 steps",
    "train.eval_every=null",
    "checkpoint.every=null",
)


def test_positives_paired_at_random_teach_nothing(shards: Path, tmp_path: Path) -> None:
    """The control stays at the loss of chance, 2 ln(1 + 48) = 7.78; with their own positives it falls."""
    runs, losses = {"own": None, "other": pair_at_random}, []
    for name, hook in runs.items():
        arguments = line(shards, tmp_path / name, *LEARNING, *layout(0, 1, 16))
        (outcome,) = run_on_ranks(partial(command, hook=hook), 1, *arguments)
        assert outcome.code == 0, outcome.err
        losses.append(sum(record["loss"] for record in steps(tmp_path / name)[-8:]) / 8)
    chance = 2 * math.log(1 + 48)
    assert losses[0] < chance - 1.5, losses
    assert losses[1] > chance - 0.3, losses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["moby.queue=40"],
            "moby.queue (40) must be a multiple of train.global_batch_size (16), whose keys enter it "
            "together; set it to 32",
        ),
        (["data.augment={}"], "data.augment is for task=classification: leave it out (null) for task=moby"),
        (
            ["moby.head.norm_group_images=3"],
            "moby.head.norm_group_images (3) must divide train.micro_batch_size (8), or be a multiple of it",
        ),
    ],
)
def test_rules(shards: Path, changes: list[str], message: str) -> None:
    config = load_config(CONFIG, options(shards, Path("run"), "train.micro_batch_size=8", *changes))
    assert any(error.startswith(message) for error in run_errors(config)), run_errors(config)
