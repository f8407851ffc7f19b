"""Slots, gradient buckets and gathered parameters by hand, and the memory of whole models."""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from launcher.config.load import load_config
from launcher.config.schema import ParallelConfig
from launcher.plan.base.capacity import gathered_placement, slots_by_layer
from launcher.plan.memory.estimate import Memory, predict_memory
from launcher.plan.memory.gradient_buckets import GradientSizes, Snapshot, flow_of
from launcher.plan.memory.zero3_prefetch import Gathered
from parallel.experts.placement import ExchangeOptions, ExpertParallel, ExpertSlice
from swin_moe.moe.layer import MoELayer
from swin_moe.random.keyed import sample_keys
from tests.launcher.plan.memory_models import IMAGES, MOE, SMALL, real_model, run_config


@pytest.mark.parametrize("factor", [0.0, 1.25, -1.25, 0.5])
@pytest.mark.parametrize("padded", [False, True])
def test_slots_are_those_of_the_layers(factor: float, padded: bool) -> None:
    model = replace(SMALL, image_size=(24, 40), moe=replace(MOE, capacity_factor=factor))
    config = run_config(model, parallel=ParallelConfig(expert_exchange=ExchangeOptions(padded=padded)))
    real = real_model(config)
    asked: dict[str, Any] = {}
    for name, layer in real.named_modules():
        if isinstance(layer, MoELayer):

            def note(_: Any, args: Any, name: str = name.removesuffix(".mlp")) -> None:
                asked[name] = (len(args[0]), args[2])

            layer.router.register_forward_pre_hook(note)
            assert isinstance(layer.placement, ExpertParallel)
            object.__setattr__(layer.placement, "options", config.parallel.expert_exchange)
    output = real(torch.randn(IMAGES, 3, 24, 40), sample_keys(0, torch.arange(IMAGES)))
    slots = slots_by_layer(model, IMAGES, padded=padded)
    assert slots.keys() == asked.keys() == output.moe.keys()
    for name, (tokens, call) in asked.items():
        assert (slots[name].tokens, slots[name].groups, slots[name].capacity) == (
            tokens,
            call.groups,
            call.slots,
        )
        received = int(output.moe[name].received)
        assert received <= slots[name].most(4)
        if padded and factor not in (0.0,):
            assert received == slots[name].rows
        if factor == 0.0:
            assert received == slots[name].rows == 2 * tokens


def test_ways_of_experts_and_rows() -> None:
    """Four ranks, two slices: 8 experts in 2 blocks; each rank holds half of 4 experts."""
    placement = ExpertParallel(num_experts=8, local_experts=range(4, 8), part=ExpertSlice(1, 2, 2), ep_size=4)
    rows = gathered_placement(
        placement, 1
    )  # each of 4 ranks sends the rows of 4 experts here: half of its 80
    assert (rows.local, rows.sources, rows.copies, rows.received(80, 8)) == (4, 4, 2, 160)
    half = gathered_placement(placement, 2)  # two slices joined: rows of 2 ranks
    assert (half.local, half.sources, half.copies, half.received(80, 8)) == (4, 2, 1, 80)
    weights = gathered_placement(placement, 4)  # everything here
    assert (weights.local, weights.sources, weights.part.of, weights.received(80, 8)) == (8, 1, 1, 80)


def sizes(**options: Any) -> GradientSizes:
    """100 dense elements in halves over two ranks, a bucket of 60."""
    given: dict[str, Any] = {
        "width": 4,
        "kept": 4,
        "whole": (100, 0),
        "part": (50, 0),
        "touched": (60, 0),
        "ranks": (2, 1),
        "largest": 40,
        "group_parts": (50,),
        "bucket": 60,
        "passes": 1,
        "overlaps": False,
        "reserved": False,
        "offload": False,
    }
    return GradientSizes(**{**given, **options})


def flow(stage: int, given: GradientSizes) -> list[int]:
    """The most bytes in a backward pass of gradients of 40, 40 and 20, its end, and the update."""
    flow = flow_of(stage, given)

    def most(moments: list[Snapshot]) -> int:
        return max(sum(now.gradients) + now.buckets + now.copies for now in moments)

    backward = [now for elements in (40, 40, 20) for now in flow.take(elements, 0)]
    return [most(backward), most(list(flow.reduction())), most(list(flow.update()))]


def test_gradients_by_stage() -> None:
    """In bytes of 4, the gradient that just comes apart: see flows.py."""
    assert flow(0, sizes()) == [4 * 80, 4 * 200, 4 * (100 + 40)]
    # the bucket holds 60 beside 40 and a copy of 60; then the part beside it
    assert flow(1, sizes()) == [4 * 80, 4 * (40 + 60 + 60), 4 * (60 + 50)]
    # 40 are in the bucket when 40 more come: a copy of 40, then 60 for the part; at the end 60 more
    assert flow(2, sizes()) == [4 * (60 + 40), 4 * (60 + 60 + 60), 4 * (60 + 50)]
    # bf16 at stage 1: fp32 gradients for good, bf16 ones of the pass, the copy in fp32 and in bf16
    flat = sizes(width=2, kept=4)
    assert flow(1, flat) == [4 * 100 + 2 * 80, 400 + 200 + 400 + 200, 400 + 200 + 200]
    assert flow(3, sizes()) == [4 * (50 + 60 + 40), 4 * (50 + 60 + 60), 4 * (50 + 50)]


def test_gathered_parameters() -> None:
    """Of 100: those within 2 * 30 elements of the turn stay, and 20 are fetched ahead."""
    gathered = Gathered(whole=100, small=5, largest=10, prefetch=20, reuse=60, live=1000)
    assert gathered.forward(last=False) == (50, 20)
    assert gathered.forward(last=True) == (30, 0)
    assert gathered.backward(0) == (50, 20)
    assert gathered.backward(25) == (25, 20)
    assert gathered.backward(98) == (5, 2)


@pytest.mark.long
def test_the_giant_in_seconds() -> None:
    """SwinV2-G at a micro-batch of 8, with checkpointing: nothing is allocated."""
    path = "swinv2_g_patch4_window12_192_22k"
    config = load_config(path, ["train.micro_batch_size=8"])
    began_s = time.process_time()
    found = predict_memory(config, [8] * 4, "cuda")
    assert time.process_time() - began_s < 10
    assert dict(found.items)["dense parameters"] == 2 * 3087326257
    assert found.peak_bytes > 18 * 2**30


def test_checkpointing_and_experts_show() -> None:
    """The items say what changes: activations by stage, experts by rank."""

    def found(activation_checkpoint_every: int, ep_size: int) -> Memory:
        model = replace(SMALL, moe=MOE, activation_checkpoint_every=activation_checkpoint_every)
        return predict_memory(run_config(model, parallel=ParallelConfig(ep_size=ep_size)), [4], "cuda")

    plain, saving = dict(found(0, 1).activations), dict(found(1, 1).activations)
    assert saving["stage 0"] < plain["stage 0"] / 10
    one, two = (dict(found(0, ep_size).items)["expert parameters"] for ep_size in (1, 2))
    assert one == 2 * two
