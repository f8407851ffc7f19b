"""Slots of an MoE layer in one forward pass of a rank: the rows it sends, the rows its experts compute.

Loads are taken for even: every expert of a layer is wanted by as many tokens, on every rank.

Legend: T tokens, k choices, E experts, G routing groups, S = T / G tokens a group.
"""

import math
from dataclasses import dataclass

from parallel.experts.gather_degree import copies_of_row
from parallel.experts.placement import ExpertParallel, ExpertSlice
from swin_moe.config import ModelConfig
from swin_moe.moe.capacity import capacity
from swin_moe.moe_config import MoEConfig


@dataclass(frozen=True, kw_only=True)
class Slots:
    """What one layer has room for, and what of it even load fills."""

    tokens: int  # T of this rank
    groups: int  # G
    capacity: int  # slots of one expert in one routing group
    rows: int  # that this rank's tokens fill under even load; all slots where they are padded

    def most(self, num_experts: int) -> int:
        """Rows that this rank's tokens can fill, whatever the load."""
        return num_experts * self.groups * min(self.capacity, self.tokens // self.groups)


@dataclass(frozen=True, kw_only=True)
class GatheredPlacement:
    """Which experts a rank computes, and for which ranks, at one gather degree of the exchange."""

    degree: int  # neighbouring ranks that gather their weights
    local: int  # experts that this rank then computes
    sources: int  # ranks whose rows it computes
    copies: int  # ranks to which each row goes, as its expert stays sliced
    part: ExpertSlice  # of each expert

    def received(self, rows: int, num_experts: int) -> int:
        """Rows that this rank computes where each rank has so many."""
        return math.ceil(rows * self.local / num_experts) * self.sources


def slots_of(
    moe: MoEConfig, *, images: int, length: int, padded: bool = False, top_k: int | None = None
) -> Slots:
    """The slots of a layer in training.

    Args:
        moe: of the layer.
        images: of the micro-batch.
        length: tokens of an image.
        padded: whether the exchange pads rows to the capacity.
        top_k: choices of a token; None for the configured ones.
    """
    k = moe.top_k if top_k is None else top_k
    if moe.router == "soft":
        rows = images * moe.num_experts * moe.slots_per_expert
        slots = images * moe.slots_per_expert
        return Slots(tokens=images * length, groups=1, capacity=slots, rows=rows)
    groups = images // moe.routing_group_images
    size = moe.routing_group_images * length
    slots = capacity(moe.capacity_factor, size, moe.num_experts, k)
    bound = moe.num_experts * groups * min(slots, size)
    if padded and slots < size:
        rows = moe.num_experts * groups * slots
    else:
        rows = bound if moe.router == "expert_choice" else min(images * length * k, bound)
    return Slots(tokens=images * length, groups=groups, capacity=slots, rows=rows)


def slots_by_layer(model: ModelConfig, images: int, *, padded: bool = False) -> dict[str, Slots]:
    """The slots of every MoE layer of a model by its name, for a micro-batch of so many images."""
    if model.moe is None:
        return {}
    return {
        f"layers.{stage}.blocks.{block}": slots_of(
            model.moe, images=images, length=model.stage_tokens(stage), padded=padded
        )
        for stage, blocks in enumerate(model.moe.blocks)
        for block in blocks
    }


def gathered_placement(placement: ExpertParallel, degree: int) -> GatheredPlacement:
    """The placement at a gather degree, for a rank that holds most experts."""
    slices, experts = placement.part.of, placement.num_experts
    copies = copies_of_row(slices, degree)
    return GatheredPlacement(
        degree=degree,
        local=min(experts, len(placement.local_experts) * max(1, degree // slices)),
        sources=placement.ep_size // degree,
        copies=copies,
        part=ExpertSlice() if copies == 1 else ExpertSlice(slices - degree, slices, slices),
    )
