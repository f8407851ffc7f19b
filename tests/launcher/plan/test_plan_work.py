"""What a step asks for: products by hand, whole models as swin_moe/backbone/flops.py counts them, traffic."""

from dataclasses import replace

import pytest
import torch
from torch.torch_version import TorchVersion

from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Device
from launcher.plan.base.trace import Trace, TracedOp
from launcher.plan.time.links import RankGroup
from launcher.plan.time.traffic import Collective, traffic
from launcher.plan.time.workload import expert_ops, expert_rows, flops_by_part
from parallel.experts.placement import ExchangeOptions
from swin_moe.backbone.flops import cost
from tests.launcher.plan.tiny_runs import MOE, TINY, run_of, work_of
from tests.models import small_lr_net


def collectives(config: RunConfig, nodes: list[int]) -> dict[str, Collective]:
    return {
        c.name: c
        for c in traffic(config, nodes, work_of(replace(config.model, activation_checkpoint_every=0)))
    }


def test_products_of_a_stage_by_hand() -> None:
    found = flops_by_part(work_of(TINY))
    # a block of stage 0, 16 tokens: qkv, scores and answers in windows of 4, projection
    attention = 16 * 8 * 24 + 2 * 16 * 4 * 8 + 16 * 8 * 8
    assert found["stage 0", "attention"] == 2 * attention
    assert found["stage 0", "mlp"] == 2 * (2 * 16 * 8 * 32)
    assert found["stage 1", "merging"] == 4 * 32 * 16
    assert found["stage 1", "router"] == 4 * 16 * 4
    assert found["stage 1", "experts"] == 2 * 4 * 16 * 64  # one expert a token
    assert found["patches", "patches"] == 16 * 48 * 8
    assert found["head", "head"] == 16 * 10


def test_products_of_a_rectangle_by_hand() -> None:
    """16 x 32 pixels: maps of 4 x 8 and 2 x 4 tokens, twice those of a square of 16, in windows as large."""
    found, square = (flops_by_part(work_of(replace(TINY, image_size=s))) for s in ((16, 32), 16))
    assert found == {part: 2 * count for part, count in square.items()} | {("head", "head"): 16 * 10}


def test_the_backward_pass_has_two_products_for_each() -> None:
    for part in work_of(TINY).parts:
        forward, backward = (sum(op.multiply_adds for op in ops) for ops in part.trace.at(4))
        # pictures need no gradient, and neither do the coordinates of the position bias
        assert backward == (forward if part.name == "patches" else 2 * forward), part.name


MODELS = {
    "V1, experts": TINY,
    "V2": replace(TINY, moe=None, attention="cosine", position_bias="log_cpb", norm="post"),
    "MLP, padded windows": replace(TINY, moe=None, attention="mlp", image_size=24, window_size=4),
    "cosine router, two of SwiGLU experts, a shared one": replace(
        TINY, moe=replace(MOE, router="cosine", top_k=2, expert_activation="swiglu", shared_expert=True)
    ),
    "local relation": replace(TINY, attention="local_relation", local_relation=small_lr_net().relation),
    "LR-Net": small_lr_net(),
    "soft": replace(TINY, moe=replace(MOE, router="soft", slots_per_expert=2)),
    "experts on wide maps": replace(TINY, image_size=(16, 40)),  # 4 x 10 and 2 x 5
    "clips": replace(TINY, frames=6, window_frames=2, window_padding="fitted", head_dropout=0.5),
    "clips, padded windows": replace(TINY, frames=5, window_frames=4, image_size=24, window_size=4),
    "tall maps, padded windows": replace(TINY, image_size=(44, 8), window_size=4),  # 11 x 2 and 6 x 1
}
LONG = ("LR-Net", "experts on wide maps", "clips", "clips, padded windows", "tall maps, padded windows")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in MODELS]
)
def test_parts_add_up_to_the_model(name: str, device: Device) -> None:
    assert sum(flops_by_part(work_of(MODELS[name], device)).values()) == cost(MODELS[name]).flops


def floats(trace: Trace) -> list[list[TracedOp]]:
    """What a piece does to numbers; integers are sorted and hashed otherwise on a GPU."""
    return [[op for op in half if op.elements or op.multiply_adds] for half in trace.at(1)]


def test_only_attention_differs_on_a_gpu() -> None:
    for cpu, gpu in zip(work_of(TINY).parts, work_of(TINY, "cuda").parts, strict=True):
        same = (cpu.stage, cpu.name, cpu.number) == (gpu.stage, gpu.name, gpu.number)
        assert same
        if cpu.name != "attention":
            if (
                cpu.name != "patches" or TorchVersion(torch.__version__) >= "2.12"
            ):  # 2.11 copies images for cuDNN
                assert floats(gpu.trace) == floats(cpu.trace)
            continue
        # one image, 4 or 1 windows of 4 tokens, C channels: the fused backward pass makes the scores again
        channels, tokens = (8, 16) if cpu.stage == "stage 0" else (16, 4)
        backward = [sum(op.multiply_adds for op in part.trace.at(1)[1]) for part in (cpu, gpu)]
        assert backward[1] - backward[0] == tokens * 4 * channels


def test_work_is_linear_in_the_images() -> None:
    part = next(p for p in work_of(TINY).parts if p.name == "attention")
    for one, seven in zip(part.trace.at(1)[0], part.trace.at(7)[0], strict=True):
        if one.kind == "product" and one.batch > 1:
            assert seven.batch == 7 * one.batch
        elif one.kind == "product":
            assert (seven.m, seven.n, seven.k) == (7 * one.m, one.n, one.k)


def test_rows_of_a_capacity() -> None:
    # two images of 4 tokens a group, 4 experts: int(1.25 * ceil(8 / 4)) = 2 slots
    assert expert_rows(TINY, 4, images=4) == 16  # 2 groups x 4 experts x 2 slots: as many as there are tokens
    low = replace(TINY, moe=replace(MOE, capacity_factor=0.5))  # 1 slot
    assert expert_rows(low, 4, images=4) == 8
    high = replace(TINY, moe=replace(MOE, capacity_factor=2.0))  # 4 slots, half of them empty
    assert expert_rows(high, 4, images=4) == 16
    assert expert_rows(high, 4, images=4, padded=True) == 32
    assert expert_rows(low, 4, images=4, capped=False) == 16


def test_a_slice_computes_its_share() -> None:
    (experts,) = work_of(TINY).experts
    whole, half = (expert_ops(experts, rows=12, count=3, slices=n)[0] for n in (1, 2))
    products = [op for op in whole if op.kind == "product"]
    assert [(op.batch, op.m, op.n, op.k) for op in products] == [(3, 4, 64, 16), (3, 4, 16, 64)]
    assert sum(op.multiply_adds for op in half) == sum(op.multiply_adds for op in whole) / 2
    # of each expert 4 rows of 16, 16 x 64 weights, 4 rows of 64
    assert [op.elements for op in products] == [3 * (4 * 16 + 16 * 64 + 4 * 64)] * 2


def test_rows_inside_and_between_nodes() -> None:
    # 2 nodes of 2 ranks share 4 experts; a rank's 2 images are 8 tokens of 16 channels: 8 x 16 x 4 bytes
    found = collectives(run_of(ep_size=4), [2, 2])
    out = found["rows forward"]
    assert (out.group, out.size, out.times) == (RankGroup(4, 2), 512, 2)
    assert found["rows backward"].times == 2
    assert out.crossing_bytes == 2 * 512 / 2  # two of four ranks are on the other node
    assert out.sent_bytes == 2 * 512 * 3 / 4
    assert "keys of rows" not in found
    twice = collectives(run_of(replace(TINY, activation_checkpoint_every=1), ep_size=4, steps=3), [2, 2])
    assert (twice["rows forward"].times, twice["rows backward"].times) == (2 * 2 * 3, 2 * 3)


def test_weights_travel_instead_of_rows() -> None:
    options = ExchangeOptions(strategy="dp")
    found = collectives(run_of(ep_size=4, expert_exchange=options), [4])
    assert "rows forward" not in found
    # an expert: 16 x 64 and 64, 64 x 16 and 16 numbers; one a rank, and of all four a message
    assert found["weights of experts"].size == 4 * (2 * 16 * 64 + 64 + 16) * 4
    sliced = collectives(run_of(ep_size=4, expert_tensor_parallel_size=2), [4])
    assert sliced["rows forward"].size == 2 * 512  # each row goes to both slices


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        (0, {"dense gradients": ("all_reduce", 1), "expert gradients": ("all_reduce", 1)}),
        (1, {"dense gradients": ("all_reduce", 1), "dense parameters": ("gather", 1)}),
        (2, {"dense gradients": ("all_reduce", 3), "dense parameters": ("gather", 1)}),
        (3, {"dense gradients": ("gather", 3), "dense parameters": ("gather", 6)}),
    ],
)
def test_zero_by_stage(stage: int, names: dict[str, tuple[str, int]]) -> None:
    found = collectives(run_of(ep_size=2, zero_stage=stage, steps=3), [4])
    dense, expert = work_of(TINY).dense_parameters, 2 * (2 * 16 * 64 + 64 + 16)
    for name, (kind, times) in names.items():
        one = found[name]
        assert (one.kind, one.times) == (kind, times)
        assert one.size == 4 * (dense if name.startswith("dense") else expert)
        assert one.group == (RankGroup(4, 4) if name.startswith("dense") else RankGroup(2, 2))
    assert ("dense parameters" in found) == (stage > 0)


def test_one_rank_sends_nothing() -> None:
    assert traffic(run_of(ranks=1), [1], work_of(TINY)) == []
