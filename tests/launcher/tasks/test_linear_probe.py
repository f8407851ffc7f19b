"""The linear probe of MoBY: a classifier on a frozen backbone, as a plain loop of torch trains it."""

import math
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.rundir.directory import RunDirectory
from launcher.tasks.image_data import normalize_images
from launcher.training.builders import train_stream
from parallel.ranks.dims import ParallelDims
from parallel.ranks.mesh import Mesh
from swin_moe import build_model, load_weights
from swin_moe.random.keyed import sample_keys
from swin_moe.weights import save_weights
from tests.launcher.running import CONFIG, overrides, run_alone, steps
from tests.launcher.tasks.layouts import stored
from tests.models import randomize

STEPS, WARMUP, IMAGES = 6, 2, 16
CLIP = 0.5  # of the gradient norm, which this small run would not reach with the recipe's 5
PROTOCOLS = {
    "moby_linear__swin_tiny__img224_window7": 0.2,
    "moby_linear__swin_tiny__img224_window7__no_drop_path": 0.0,
}
OF_THE_RECIPE = (
    "optimizer",
    "momentum",
    "freeze",
    "base_lr",
    "weight_decay",
    "label_smoothing",
)


def line(shards: Path, run: Path, protocol: str, weights: Path) -> list[str]:
    """A small run with the optimizer and the drop path of a recipe."""
    recipe = load_config(protocol)
    optim = [f"optim.{name}={_written(getattr(recipe.optim, name))}" for name in OF_THE_RECIPE]
    more = (f"train.duration={STEPS} steps", f"optim.warmup={WARMUP} steps", "train.eval_every=null")
    plain = ("model.moe=null", "data.augment=null", f"model.drop_path_rate={recipe.model.drop_path_rate}")
    plain = (*plain, f"optim.max_grad_norm={CLIP}")
    start = (f"train.pretrained={weights}", "train.pretrained_head=replace")
    return ["train", str(CONFIG), *overrides(shards, run, *optim, *more, *plain, *start)]


def _written(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def rate(config: RunConfig, step: int) -> float:
    """A line to the peak, then half a cosine; for 512 images."""
    optim, scale = config.optim, IMAGES / 512
    if step < WARMUP:
        return scale * (optim.warmup_lr + (optim.base_lr - optim.warmup_lr) * step / WARMUP)
    cosine = (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2
    return scale * (optim.min_lr + (optim.base_lr - optim.min_lr) * cosine)


def plain_loop(config: RunConfig, weights: Path) -> tuple[nn.Linear, list[float]]:
    """The classifier and the losses of a loop that computes features of a model in training mode."""
    model = build_model(config.model, seed=config.seed).train()
    load_weights(model, weights, head="replace")
    head = model.head
    sgd = torch.optim.SGD(head.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.0)
    losses, micro_batches = [], IMAGES // config.train.micro_batch_size
    with train_stream(config, RunDirectory("unused"), Mesh(dims=ParallelDims())) as stream:
        batches = iter(stream)
        for step in range(STEPS):
            sgd.zero_grad()
            losses.append(0.0)
            for batch in islice(batches, micro_batches):
                images = normalize_images(batch["image"], config.data, torch.device("cpu"))
                with torch.no_grad():
                    features, _ = model.forward_pooled(images, sample_keys(config.seed, batch.positions))
                loss = F.cross_entropy(head(features), batch["label"], label_smoothing=0.1) / micro_batches
                loss.backward()
                losses[-1] += loss.item()
            nn.utils.clip_grad_norm_(head.parameters(), CLIP)
            sgd.param_groups[0]["lr"] = rate(config, step)
            sgd.step()
    return head, losses


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_head_alone_is_trained_as_by_a_plain_loop(shards: Path, tmp_path: Path, protocol: str) -> None:
    run, weights = tmp_path / "run", tmp_path / "weights.safetensors"
    command = line(shards, run, protocol, weights)
    config = load_config(CONFIG, command[2:])
    assert config.model.drop_path_rate == PROTOCOLS[protocol]
    source = randomize(build_model(config.model), seed=3)
    save_weights(source, weights, "native")
    said = run_alone(*command).out
    head, losses = plain_loop(config, weights)
    trained, before = stored(run, STEPS, "master"), dict(source.named_parameters())
    assert f"frozen: {len(trained) - 2} of {len(trained)} tensors" in said
    moved = {name for name in trained if not torch.equal(trained[name], before[name])}
    assert moved == {"head.weight", "head.bias"}
    assert [found["loss"] for found in steps(run)] == pytest.approx(losses, rel=1e-5)
    assert max(found["grad_norm"] for found in steps(run)) > CLIP  # it was clipped
    torch.testing.assert_close(trained["head.weight"], head.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained["head.bias"], head.bias.detach(), rtol=1e-4, atol=1e-5)


def test_drop_path_changes_the_features_that_a_probe_sees(shards: Path, tmp_path: Path) -> None:
    """The two protocols are two: the losses differ from the first step."""
    weights, found = tmp_path / "weights.safetensors", []
    for protocol in PROTOCOLS:
        config = load_config(CONFIG, line(shards, tmp_path / "run", protocol, weights)[2:])
        if not weights.exists():
            save_weights(randomize(build_model(config.model), seed=3), weights, "native")
        found.append(plain_loop(config, weights)[1])
    assert found[0][0] != pytest.approx(found[1][0], rel=1e-4)
