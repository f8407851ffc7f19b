"""A run that starts from weights of a file: the very weights, on any layout, and never over a checkpoint."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from launcher.config.load import load_config
from launcher.config.task_specs import register, unregister
from launcher.tasks.pretrained import plan_pretrained
from launcher.tasks.registry import start_on_meta, task_spec
from launcher.validation.place_rules import place_errors
from parallel.checkpoint.commit import latest
from parallel.checkpoint.load import load_weights as load_checkpoint
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.backbone.model import SwinTransformer, build_model
from swin_moe.weights import save_weights
from tests.accelerator import on_either_processor
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, commands, evaluations, overrides, steps
from tests.models import randomize, small_run, small_swin
from tests.swin_moe.weights.dense_files import DENSE, DenseModel, dense_model, released
from tests.swin_moe.weights.pretraining_files import moby

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # to read a checkpoint here

STILL = ("optim.base_lr=0.0", "optim.warmup_lr=0.0", "optim.min_lr=0.0", "train.duration=1 steps")


@pytest.fixture
def donor(shards: Path, tmp_path: Path) -> tuple[SwinTransformer, Path]:
    """A model whose every weight is random, and the file that holds it."""
    config = load_config(CONFIG, overrides(shards, "unused")).model
    model, generator = build_model(config), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=generator)
    path = tmp_path / "donor.safetensors"
    save_weights(model, path, "native")
    return model, path


def trained(run: Path, like: SwinTransformer) -> SwinTransformer:
    model, path = build_model(like.config), latest(run / "checkpoints")
    assert path is not None
    load_checkpoint(path, model, 8)
    return model


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (1, "parallel.ep_size=1"),
        (2, "parallel.ep_size=2"),
        *on_either_processor(2, "parallel.zero_stage=3"),
    ],
)
def test_a_run_starts_from_the_file(
    shards: Path, tmp_path: Path, donor: tuple[SwinTransformer, Path], ranks: int, layout: str
) -> None:
    """With a learning rate of 0 a step changes nothing, so the checkpoint holds what the run started from."""
    model, path = donor
    run = tmp_path / "run"
    line = ["train", str(CONFIG), "--pretrained", str(path), *overrides(shards, run, *STILL, layout)]
    outcomes = run_on_ranks(commands, ranks, [line])
    assert [rank[0].code for rank in outcomes] == [0] * ranks
    assert "tensors loaded" in outcomes[0][0].out
    expected = dict(model.named_parameters())
    for name, parameter in trained(run, model).named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_an_upcycled_run_starts_where_the_dense_one_ended(shards: Path, tmp_path: Path) -> None:
    """The evaluation before the first step is the dense run's last, and leaves no trace in the training."""
    dense, file = tmp_path / "dense", tmp_path / "dense.safetensors"
    short = ("train.duration=6 steps", "optim.warmup=0 steps", "train.eval_every=null", "parallel.ep_size=1")
    even = ("model.moe.top_k=2", "model.moe.normalize_gates=true", "model.moe.capacity_factor=0")
    grown = [*overrides(shards, tmp_path / "first", *short, *even), "train.upcycle_noise=0.0"]
    lines = [
        ["train", str(CONFIG), *overrides(shards, dense, *short, "model.moe=null")],
        ["convert", str(dense), str(file), "--to", "native"],
        ["train", str(CONFIG), "--pretrained", str(file), *grown, "train.eval_first=true"],
        ["train", str(CONFIG), "--pretrained", str(file), *grown, f"run_dir={tmp_path / 'plain'}"],
    ]
    (outcomes,) = run_on_ranks(commands, 1, lines)
    assert [outcome.code for outcome in outcomes] == [0] * 4, outcomes
    first, last = evaluations(tmp_path / "first")
    (wanted,) = evaluations(dense)
    assert (first["step"], last["step"]) == (0, 6)
    assert first["eval_top1"] == wanted["eval_top1"]
    assert first["eval_loss"] == pytest.approx(wanted["eval_loss"], rel=1e-5)
    assert "\n  at the start " in outcomes[2].out
    for found, plain in zip(steps(tmp_path / "first"), steps(tmp_path / "plain"), strict=True):
        assert (found["loss"], found["grad_norm"]) == (plain["loss"], plain["grad_norm"])


@pytest.mark.parametrize("task", ["simmim", "tests.toy_task:SPEC"])
def test_a_task_with_a_head_of_its_own_starts_from_a_classifier(task: str, tmp_path: Path) -> None:
    """The backbone takes the file as it is, and the plan names the classifier that it leaves out."""
    path = save_weights(build_model(small_swin(num_classes=9)), tmp_path / "weights.safetensors", "native")
    config = small_run(small_swin(), task=task, train={"pretrained": str(path)})
    plan = plan_pretrained(config.train, start_on_meta(config))
    assert set(plan.report.dropped) == {"head.weight", "head.bias"}
    assert set(plan.tensors) == {name for name in load_file(path) if not name.startswith("head.")}


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_dense_task_starts_from_the_encoder_of_moby(task: str, tmp_path: Path) -> None:
    """Every tensor of the backbone is MoBY's online encoder; the recipes require that."""
    model = small_swin(image_size=64, depths=(1, 1, 1), num_heads=(2, 4, 8), window_padding="visible")
    classifier = randomize(build_model(replace(model, window_padding="hidden")), seed=3)
    save_weights(classifier, tmp_path / "official.pth", "official")
    path = tmp_path / "moby.pth"
    torch.save({"model": moby(torch.load(tmp_path / "official.pth")["model"]), "epoch": 299}, path)
    train = {"pretrained": str(path), "pretrained_require": "backbone"}
    config = small_run(model, task=task, train=train)
    plan = plan_pretrained(config.train, start_on_meta(config))
    assert plan.report.format == "MoBY"
    assert plan.report.changes[0].startswith("taken from the weights: backbone 49 of 49, stage norms 0 of 6,")
    weights = dict(classifier.named_parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plan.tensors.items())


@pytest.fixture
def dense_task() -> Iterator[str]:
    """A task whose model has norms of its stages and heads around the backbone, which can be loaded."""
    spec = replace(
        task_spec("classification"),
        name="dense_heads",
        options=None,
        model_on_meta=lambda config, _: construct_on_meta(DenseModel, config.model),
        backbone=lambda model: model.encoder,
        pretrained=lambda model: model,
    )
    register(spec)
    yield spec.name
    unregister(spec.name)


def test_a_recipe_requires_weights(dense_task: str, tmp_path: Path) -> None:
    """The backbone of a classifier, or a whole model of the task; the line says what comes from where."""

    def errors(require: str, pretrained: Path | None = None) -> list[str]:
        train = {"pretrained": str(pretrained) if pretrained else None, "pretrained_require": require}
        run = small_run(DENSE, task=dense_task, train=train)
        return place_errors(replace(run, run_dir=str(tmp_path / "run")))

    plain = replace(DENSE, window_padding="hidden")
    classifier = save_weights(build_model(plain), tmp_path / "classifier.pth", "official")
    whole = tmp_path / "whole.pth"
    torch.save(released(dense_model(seed=1), "zoo"), whole)
    assert errors("nothing") == errors("backbone", classifier) == errors("all", whole) == []
    for require in ("backbone", "all"):
        assert errors(require) == [
            f"train.pretrained_require ({require}): this run starts from pretrained weights, and "
            "train.pretrained names none; add --pretrained FILE, or set train.pretrained_require=nothing to "
            "start from random weights"
        ]
    assert errors("all", classifier) == [
        f"train.pretrained: {classifier} does not have the whole model, which train.pretrained_require=all "
        "asks for (stage norms: 4 tensors, decode head: 12 tensors, auxiliary head: 12 tensors would keep "
        "their initial values); set train.pretrained_require=backbone, or give weights with these parts"
    ]
    config = small_run(DENSE, task=dense_task, train={"pretrained": str(whole)})
    plan = plan_pretrained(config.train, start_on_meta(config))
    assert plan.report.changes[0].startswith("taken from the weights: backbone 59 of 59, stage norms 4 of 4,")


def test_what_cannot_be_a_start_is_refused(
    shards: Path, tmp_path: Path, donor: tuple[SwinTransformer, Path]
) -> None:
    _, path = donor
    truncated = tmp_path / "cut.safetensors"
    truncated.write_bytes(path.read_bytes()[:5000])
    diverged = tmp_path / "diverged.safetensors"
    save_file({name: torch.full_like(t, float("nan")) for name, t in load_file(path).items()}, diverged)
    run = tmp_path / "a" / "run"
    options = overrides(shards, run, *STILL)
    lines = [
        ["train", str(CONFIG), "--pretrained", str(diverged), *options],
        ["train", str(CONFIG), "--pretrained", str(tmp_path / "none.pth"), *options],
        ["train", str(CONFIG), "--pretrained", str(truncated), *options],
        [
            "train",
            str(CONFIG),
            "--pretrained",
            str(path),
            *options,
            "model.num_classes=10",
            "model.embed_dim=24",
        ],
    ]
    for outcome in run_on_ranks(commands, 1, lines)[0]:
        assert outcome.code == 2
        assert "one thing to correct:\n  train.pretrained: " in outcome.err
        assert "Traceback" not in outcome.err
    assert latest(run / "checkpoints") is None
