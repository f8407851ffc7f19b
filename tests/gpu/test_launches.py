"""Ceilings of what a step launches, reads on the host and moves, where a GPU runs it; counted on the CPU.

A change that needs more is either a mistake or a reason to raise the number here, knowingly.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import swin_moe
from parallel.experts.exchange import ExchangeOptions
from swin_moe.heads.classification import classification_loss
from swin_moe.moe.layer import MoELayer
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import sample_keys
from swin_moe.recipes import load_model_config
from tests.gpu.counting import Count, counted, gpu_paths
from tests.gpu.fakes import place
from tests.models import moe_layer

__all__ = ["gpu_paths"]
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("gpu_paths")]

MOE_S = "swin_moe_small_patch4_window12_192_8expert_32gpu_22k"
IMAGES = 2
DROPLESS = {"capacity_factor": 0.0, "batch_prioritized": False}


def step(name: str, fakes: bool, **moe: Any) -> tuple[Count, int]:
    """Counts of a training step in bf16, forward and backward, and the number of parameters.

    Args:
        name: of the recipe.
        fakes: take tensors without values, which cost a quarter of the time; a read on the host is an error.
        moe: changes of the experts.
    """
    changes: dict[str, Any] = {"moe": {"routing_group_images": IMAGES, **moe}} if "moe" in name else {}
    nowhere: AbstractContextManager[Any] = torch.device("meta") if fakes else nullcontext()
    without_values: AbstractContextManager[Any] = FakeTensorMode() if fakes else nullcontext()
    with nowhere:
        model = swin_moe.build_model(name, num_classes=100, **changes).train()
    side = model.config.image_size
    with without_values:
        if fakes:
            place(model, "cpu", torch.bfloat16)
        else:
            model.to(torch.bfloat16)
        images, keys = torch.randn(IMAGES, 3, side, side), sample_keys(0, torch.arange(IMAGES))
        with counted() as count:
            output = model(images, keys)
            loss = classification_loss(output.logits, torch.zeros(IMAGES, dtype=torch.int64), 0.1)
            (loss + output.aux_loss).backward()
    return count, sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "fakes", "launches", "megabytes"),
    [
        ("swin_tiny_patch4_window7_224", True, 630, 450),
        ("swinv2_tiny_patch4_window8_256", False, 1310, 820),
        (MOE_S, True, 2900, 710),
    ],
    ids=["swin", "swinv2", "experts"],
)
def test_a_training_step(name: str, fakes: bool, launches: int, megabytes: int) -> None:
    """Bytes are of activations: weights, read twice, and their gradients are left out, in 2 bytes each."""
    count, parameters = step(name, fakes)
    assert count.launches <= launches
    assert not count.reads
    assert (count.bytes - 3 * 2 * parameters) / IMAGES <= megabytes * 1e6


def layer(**moe: Any) -> tuple[MoELayer, Tensor, Tensor]:
    """The layer of stage 3 of Swin-MoE-S, small in width alone, with tokens and keys of 8 images."""
    config = load_model_config(MOE_S, moe={"routing_group_images": 8, **moe}).moe
    made = moe_layer(config, dim=32, hidden=64, fc2_bias=False).to(torch.bfloat16)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    tokens = torch.randn(8, 144, 32, dtype=torch.bfloat16, requires_grad=True)
    return made.train(), tokens, sample_keys(0, torch.arange(8))


def launches_of(options: ExchangeOptions | None = None, **moe: Any) -> tuple[int, int, Count]:
    """Launches forward and backward of one layer."""
    made, tokens, keys = layer(**moe)
    with counted() as count:
        y, stats = made(tokens, keys, RoutingOverrides(exchange=options))
        forward = count.launches
        learned = [x for x in (y, stats.loss) if x.requires_grad]
        torch.autograd.backward(learned, [torch.ones_like(x) for x in learned])
    return forward, count.launches - forward - len(learned), count  # without the ones


@pytest.mark.parametrize(
    ("moe", "forward", "backward"),
    [
        ({"gate_noise": 0.0, "balance_loss": "gshard"}, 77, 40),
        ({"gate_noise": 0.0, "balance_loss": "gshard", **DROPLESS}, 60, 34),
        ({"gate_noise": 0.0, "balance_loss": "gshard", "top_k": 2}, 86, 46),
        ({"expert_dropout": 0.0}, 95, 72),
        ({}, 103, 73),
        (DROPLESS, 82, 63),
    ],
    ids=["no noise", "no noise, dropless", "no noise, two choices", "no dropout", "capacity", "dropless"],
)
def test_a_layer_of_experts(moe: dict[str, Any], forward: int, backward: int) -> None:
    found = launches_of(**moe)
    assert found[0] <= forward
    assert found[1] <= backward
    assert not found[2].reads


def test_the_number_of_experts_adds_no_launch() -> None:
    assert launches_of(num_experts=8)[:2] == launches_of(num_experts=32)[:2]


@pytest.mark.parametrize(
    ("moe", "padded", "reads"),
    [
        ({}, False, 0),
        (DROPLESS, False, 0),
        ({}, True, 0),
        ({"router": "expert_choice", "gate_noise": 0.0, "batch_prioritized": False}, False, 1),
        ({"router": "random", "gate_noise": 0.0, "batch_prioritized": False}, False, 0),
    ],
    ids=["capacity", "dropless", "padded", "expert choice", "random"],
)
def test_reads_of_a_layer_on_one_rank(moe: dict[str, Any], padded: bool, reads: int) -> None:
    """Expert choice reads how many experts chose one token."""
    loss = {"balance_loss": "auto", "load_balance_weight": 0.0} if "router" in moe else {}
    _, _, count = launches_of(ExchangeOptions(padded=padded), **moe, **loss)
    assert count.reads.total() == reads, count.reads


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("top_k", [1, 2])
def test_rows_that_only_pad_change_nothing(monkeypatch: pytest.MonkeyPatch, top_k: int, padded: bool) -> None:
    """On a GPU the rows of dropped choices stay, computed by the last expert; on a CPU they are cut off."""
    options, found = ExchangeOptions(padded=padded), []
    for on_gpu in (True, False):
        monkeypatch.setattr("swin_moe.gpu.on_gpu", lambda x, on_gpu=on_gpu: on_gpu)
        torch.manual_seed(0)
        made, tokens, keys = layer(top_k=top_k, capacity_factor=0.5)
        y, stats = made(tokens, keys, RoutingOverrides(exchange=options))
        (y.float().square().sum() + stats.loss).backward()
        assert stats.dropped > 0
        found.append([y, tokens.grad, *(p.grad for p in made.parameters()), *stats[:5]])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=1e-5)
