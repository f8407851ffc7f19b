"""What a model costs: parameters, and FLOPs of one image or clip, counted from the model itself on meta.

The convention is the published one of the Swin family: one multiply-add counts as ONE, and only matrix
products, convolutions and the weighted sums of local relations count. The position bias network of SwinV2 is
left out, and so is the prior of local relations: they run once for a batch of any size. Of an MoE only what
serves a token counts, its router and its top_k experts: what the model does without capacity limits.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.attention import WindowAttention
from swin_moe.backbone.backbone import Backbone
from swin_moe.backbone.block import SwinBlock
from swin_moe.backbone.model import M, SwinTransformer
from swin_moe.backbone.relation_layer import LocalRelation
from swin_moe.config import ModelConfig
from swin_moe.moe.layer import MoELayer
from swin_moe.moe.routers.base import RoutingRequest


class Cost(NamedTuple):
    """The size and the work of a model."""

    parameters: int
    active_parameters: int  # those that one token meets; without experts, all
    flops: int  # multiply-adds of one image or clip in evaluation


def cost(config: ModelConfig) -> Cost:
    """Count a model on the meta device: nothing is allocated and nothing computed."""
    model = build_on_meta(config)
    return Cost(count_parameters(model), count_active_parameters(model), count_flops(model))


def build_on_meta(config: ModelConfig) -> SwinTransformer:
    """A model of shapes alone, all experts on one rank."""
    return construct_on_meta(SwinTransformer, config)


def construct_on_meta(
    make: Callable[[ModelConfig, ExpertParallel | None], M],
    config: ModelConfig,
    placement: ExpertParallel | None = None,
) -> M:
    """A module around the model of `config`, of shapes alone; all experts on one rank without a placement."""
    if placement is None and config.moe is not None:
        placement = ExpertParallel.on_one_rank(config.moe.num_experts)
    with torch.device("meta"):
        model = make(config, placement)
    return model.to("meta")  # masks and indices are constants made on the CPU


def count_parameters(model: nn.Module) -> int:
    """All parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_active_parameters(model: nn.Module) -> int:
    """Parameters that one token meets: top_k experts of each MoE layer (of a soft one all), and all else."""
    idle = 0
    for layer in _moe_layers(model):
        moe = layer.config
        if moe.router == "soft":
            continue
        idle += count_parameters(layer.experts) // moe.num_experts * (moe.num_experts - moe.top_k)
    return count_parameters(model) - idle


def count_flops(model: SwinTransformer) -> int:
    """Multiply-adds of one image or clip of the configured size; `model` is on meta and is used up."""
    config = model.config
    image, key = images_on_meta(config, config.input_sides)
    return sum(count_products(model, lambda: model(image, key)).values())


def images_on_meta(config: ModelConfig, sides: tuple[int, ...], count: int = 1) -> tuple[Tensor, Tensor]:
    """Images or clips (count, in_chans, *sides) and their keys (count,), on the meta device."""
    keys = torch.empty(count, dtype=torch.int64, device="meta")
    return torch.empty(count, config.in_chans, *sides, device="meta"), keys


def maps_on_meta(encoder: Backbone, sides: tuple[int, int]) -> list[Tensor]:
    """The map (1, C, H, W) of each stage for one image of these sides, on the meta device."""
    return [
        torch.empty(1, channels, *(-(-side // stride) for side in sides), device="meta")
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]


def count_products(model: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """Multiply-adds of an evaluation, by the operator of torch: `bmm`, `convolution` ...

    Args:
        model: on the meta device; it is used up.
        run: calls the model.
    """
    for module in list(model.eval().modules()):
        if isinstance(module, WindowAttention):
            shape = module.num_heads, *module.position_bias.index.shape
            module.position_bias = _Constant(*shape)  # type: ignore[assignment]
        elif isinstance(module, LocalRelation) and module.prior is not None:
            module.prior = _Constant(*module.prior.shape)  # type: ignore[assignment]
        elif isinstance(module, SwinBlock) and isinstance(module.mlp, MoELayer):
            module.mlp = _ActiveExperts(module.mlp)  # type: ignore[assignment]
    # attention on a CPU is one kernel that the counter does not know; on meta it is two matrix products
    # weighted sums of local relations are updates in place
    sums = {torch.ops.aten.addcmul_: _weighted_sum}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=sums) as counter:
        run()
    # torch counts a multiply-add as two
    return {operator.__name__: flops // 2 for operator, flops in counter.get_flop_counts()["Global"].items()}


def _weighted_sum(total: Sequence[int], *operands: Any, **options: Any) -> int:
    """FLOPs of total += x * y as torch counts them, two a multiply-add."""
    return 2 * math.prod(total)


class _Constant(nn.Module):
    """A position bias or a prior as evaluation keeps it: a constant, whatever it was computed by."""

    values: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.empty(shape, device="meta"))

    def forward(self) -> Tensor:
        """The bias (h, n, n) or the prior (G, k, k)."""
        return self.values


class _ActiveExperts(nn.Module):
    """The matrix products that serve the tokens of an MoE layer, on the layer's own weights.

    The layer itself sends tokens by value, which meta tensors do not have. Which expert serves a token does
    not change the work: all are of one shape.
    """

    def __init__(self, layer: MoELayer) -> None:
        super().__init__()
        self.layer = layer
        self.router = layer.router.to_empty(
            device="cpu"
        )  # autocast, which it turns off, knows no meta device

    def forward(self, x: Tensor, keys: Tensor, call: object = None) -> tuple[Tensor, None]:
        """(B, L, C) with the images' keys -> (B, L, C), and no statistics."""
        layer, config = self.layer, self.layer.config
        images, length, channels = x.shape
        request = RoutingRequest(
            groups=1, length=length, top_k=config.top_k, factor=0.0, slots=images * length
        )
        self.router(torch.zeros(images * length, channels), torch.zeros(images * length).long(), request)
        if config.router == "soft":
            mix = x.new_empty(images, length, config.num_experts * config.slots_per_expert)
            y = mix @ self._experts(mix.mT @ x)
        else:
            for _ in range(config.top_k):
                y = self._experts(x)
        return y if layer.shared is None else y + layer.shared(x, keys)[0], None

    def _experts(self, rows: Tensor) -> Tensor:
        """Each row through one expert: (..., C) -> (..., C)."""
        experts = self.layer.experts
        if experts.gate_weight is not None:
            rows @ experts.gate_weight[0]
        return rows @ experts.fc1_weight[0] @ experts.fc2_weight[0]


def _moe_layers(model: nn.Module) -> list[MoELayer]:
    return [module for module in model.modules() if isinstance(module, MoELayer)]
