"""Figures that were published, to be drawn beside ours and always marked as such.

All are of Tutel (Hwang et al. 2023, "Tutel: Adaptive Mixture-of-Experts at Scale", arXiv 2206.03382), models
SwinV2-MoE trained on ImageNet-22K at 192 pixels with batch-prioritised routing and a training capacity factor
of 1.25, speeds on A100: the tables of experts, of capacity and of speed in its section on SwinV2-MoE.
"""

from dataclasses import dataclass

SOURCE = "Hwang et al. 2023, Tutel, arXiv 2206.03382"
SPEED_DEVICE = "A100"
LARGEST_FACTOR = 1.25


@dataclass(frozen=True, kw_only=True)
class AtCapacity:
    """SwinV2-MoE-B with 32 experts, trained with k = 1, evaluated at a capacity factor."""

    capacity_factor: float
    top_k: int
    top1: float  # share of 1, ImageNet-22K
    images_s: float | None  # where it was published


@dataclass(frozen=True, kw_only=True)
class WithExperts:
    """SwinV2-MoE of a size with a number of experts; 1 is the dense model."""

    size: str
    num_experts: int
    top1: float  # share of 1, ImageNet-22K


@dataclass(frozen=True, kw_only=True)
class OnGpus:
    """Training speed of SwinV2-MoE-B with 32 experts."""

    gpus: int
    images_s: float  # of one GPU


CAPACITIES = tuple(
    AtCapacity(capacity_factor=factor, top_k=top_k, top1=top1, images_s=images_s)
    for factor, top_k, top1, images_s in (
        (1.25, 1, 0.386, 839.0),
        (1.0, 1, 0.385, 892.0),
        (0.625, 1, 0.382, 976.0),
        (0.5, 1, 0.380, 1001.0),
        (1.25, 2, 0.387, None),
        (1.0, 2, 0.386, None),
        (0.625, 2, 0.384, None),
        (0.5, 2, 0.383, None),
    )
)
EXPERTS = tuple(
    WithExperts(size=size, num_experts=num_experts, top1=top1)
    for size, num_experts, top1 in (
        ("S", 1, 0.355),
        ("S", 8, 0.368),
        ("S", 16, 0.375),
        ("S", 32, 0.374),
        ("S", 64, 0.378),
        ("S", 128, 0.374),
        ("B", 1, 0.372),
        ("B", 8, 0.381),
        ("B", 16, 0.386),
        ("B", 32, 0.385),
    )
)
SPEEDS = tuple(
    OnGpus(gpus=gpus, images_s=images_s)
    for gpus, images_s in ((8, 274.0), (16, 253.0), (32, 249.0), (64, 234.0), (128, 226.0))
)
