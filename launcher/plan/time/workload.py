"""What one training step of a model asks of a rank: its operations by stage and part.

Nothing here knows the layout but `expert_ops`: parts are for any number of images, so that one trace serves
all layouts of a search.

Legend: B images, L tokens of an image in a stage, C channels, E experts, R rows that experts compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from launcher.plan.base.hardware import Device
from launcher.plan.base.shapes import on_shapes, placed
from launcher.plan.base.trace import TracedOp
from launcher.plan.time.traced_parts import (
    BIAS,
    Experts,
    Heads,
    TracedPart,
    heads,
    patches,
    stage_experts,
    stage_parts,
)
from parallel.experts.placement import experts_of
from swin_moe.backbone.block import SwinBlock
from swin_moe.backbone.flops import build_on_meta
from swin_moe.backbone.lr_net import Bottleneck
from swin_moe.config import ModelConfig
from swin_moe.moe.capacity import capacity

PERSISTENT = 100_000  # elements up to which stage 3 keeps a tensor whole (stage3_param_persistence_threshold)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model as its parts."""

    model: ModelConfig
    parts: tuple[TracedPart, ...]
    experts: tuple[Experts, ...]
    dense_parameters: int
    dense_tensors: int  # of those, tensors that ZeRO stage 3 cuts
    modules: int  # that a forward pass calls, lists not counted
    block_modules: int  # of those, in blocks, which activation checkpointing calls twice
    views: int = 1  # of a sample, that pass through the backbone
    teacher_views: int = 0  # and through a teacher, forward alone


def describe(
    model: ModelConfig, after: Heads | None = None, *, device: Device, training: bool = True
) -> Workload:
    """Take a model apart, on shapes alone; some seconds for a Swin-B.

    Args:
        model: as configured; checkpointing makes no difference here.
        after: the parts of a task after the backbone; None is the classifier.
        device: whose operations; attention is fused on a GPU.
        training: else forward alone, as in evaluation.
    """
    model = replace(model, activation_checkpoint_every=0)
    on_meta = build_on_meta(model)
    dense = [p.numel() for p in on_meta.parameters() if experts_of(p) is None]
    with on_shapes(device), torch.set_grad_enabled(training):
        swin = placed(on_meta, device).train(training)
        parts = [patches(swin)]
        for number in range(len(model.depths)):
            parts += stage_parts(swin, number)
        parts += heads(swin, after)
        experts = [stage_experts(swin, number) for number in range(len(model.depths))]
    return Workload(
        model=model,
        parts=tuple(parts),
        experts=tuple(x for x in experts if x),
        dense_parameters=sum(dense),
        dense_tensors=sum(size > PERSISTENT for size in dense),
        modules=called_modules(on_meta),
        block_modules=sum(
            called_modules(one) for one in on_meta.modules() if isinstance(one, SwinBlock | Bottleneck)
        ),
    )


def called_modules(module: nn.Module) -> int:
    """Modules that a forward pass calls, this one included: all but lists."""
    return sum(not isinstance(one, nn.ModuleList) for one in module.modules())


def flops_by_part(work: Workload) -> dict[tuple[str, str], float]:
    """Multiply-adds of one image forward, no token dropped, by stage and part; as flops.py counts."""
    flops: dict[tuple[str, str], float] = {}
    for part in work.parts:
        if part.name != BIAS:
            own = sum(op.multiply_adds for op in part.trace.at(1)[0]) * part.number
            flops[part.stage, part.name] = flops.get((part.stage, part.name), 0) + own
    for experts in work.experts:
        rows = expert_rows(work.model, experts.length, images=1, capped=False)
        own = sum(op.multiply_adds for op in experts.one.at(rows)[0])
        flops[experts.stage, "experts"] = own * experts.layers
    return flops


def expert_rows(
    model: ModelConfig, length: int, *, images: int, capped: bool = True, padded: bool = False
) -> float:
    """Rows that the tokens of some images become, where the load is even.

    Args:
        model: with experts.
        length: tokens of an image.
        images: of a rank's micro-batch.
        capped: whether the capacity of training bounds them.
        padded: whether every slot is a row, as parallel.expert_exchange.padded has it.
    """
    moe = model.moe
    assert moe is not None
    if moe.router == "soft":
        return images * moe.num_experts * moe.slots_per_expert
    wanted = images * length * moe.top_k
    if not capped or (moe.capacity_factor == 0 and moe.router != "expert_choice"):
        return wanted
    size = moe.routing_group_images
    slots = capacity(moe.capacity_factor, size * length, moe.num_experts, moe.top_k)
    every = images / size * moe.num_experts * slots
    return every if padded or moe.router == "expert_choice" else min(wanted, every)


def expert_ops(
    experts: Experts, *, rows: float, count: float, slices: int
) -> tuple[list[TracedOp], list[TracedOp]]:
    """What a rank computes in one MoE layer, forward and backward.

    Args:
        experts: of a stage.
        rows: that arrive.
        count: experts of the rank, or slices of them.
        slices: of an expert; each computes so small a part of the hidden channels.
    """
    forward, backward = experts.one.at(rows / count)
    return [_sliced(op, experts.hidden, slices).times(count) for op in forward], [
        _sliced(op, experts.hidden, slices).times(count) for op in backward
    ]


def _sliced(op: TracedOp, hidden: int, slices: int) -> TracedOp:
    """An operation with a slice's share of the hidden channels."""
    if op.kind == "product":
        m, n, k = (size / slices if size == hidden else size for size in (op.m, op.n, op.k))
        return op._replace(m=m, n=n, k=k, elements=op.batch * (m * k + k * n + m * n))
    return op._replace(elements=op.elements / slices, other_bytes=op.other_bytes / slices)


def stages(work: Workload) -> Sequence[str]:
    """The names of the stages in order, patches first and head last."""
    return list(dict.fromkeys(part.stage for part in work.parts))
