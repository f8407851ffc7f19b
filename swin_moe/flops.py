"""What a model costs: parameters, and FLOPs of one image, counted from the model itself on the meta device.

The convention is the published one of the Swin family: one multiply-add counts as ONE, and only matrix
products and convolutions count. The position bias network of SwinV2 is left out: it runs once for a batch of
any size, and once for all in evaluation. Of an MoE only what serves a token counts, its router and its top_k
experts: what the model does without capacity limits.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from parallel.expert import ExpertParallel
from swin_moe.attention import WindowAttention
from swin_moe.block import SwinBlock
from swin_moe.config import ModelConfig
from swin_moe.model import SwinTransformer
from swin_moe.moe import MoELayer


class Cost(NamedTuple):
    """The size and the work of a model."""

    parameters: int
    active_parameters: int  # those that one token meets; without experts, all
    flops: int  # multiply-adds of one image in evaluation


def cost(config: ModelConfig) -> Cost:
    """Count a model on the meta device: nothing is allocated and nothing computed."""
    model = build_on_meta(config)
    return Cost(count_parameters(model), count_active_parameters(model), count_flops(model))


def build_on_meta(config: ModelConfig) -> SwinTransformer:
    """A model of shapes alone, all experts on one rank."""
    placement = None if config.moe is None else ExpertParallel.on_one_rank(config.moe.num_experts)
    with torch.device("meta"):
        model = SwinTransformer(config, placement)
    return model.to("meta")  # masks and indices are constants made on the CPU


def count_parameters(model: nn.Module) -> int:
    """All parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_active_parameters(model: nn.Module) -> int:
    """Parameters that one token meets: of each MoE layer's experts top_k, everything else whole."""
    idle = 0
    for layer in _moe_layers(model):
        moe = layer.config
        idle += count_parameters(layer.experts) // moe.num_experts * (moe.num_experts - moe.top_k)
    return count_parameters(model) - idle


def count_flops(model: SwinTransformer) -> int:
    """Multiply-adds of one image of the configured size; `model` is on the meta device and is used up."""
    config = model.eval().config
    for module in list(model.modules()):
        if isinstance(module, WindowAttention):
            module.position_bias = _KeptBias(module)  # type: ignore[assignment]
        elif isinstance(module, SwinBlock) and isinstance(module.mlp, MoELayer):
            module.mlp = _ActiveExperts(module.mlp)  # type: ignore[assignment]
    image = torch.empty(1, config.in_chans, config.image_size, config.image_size, device="meta")
    # attention on a CPU is one kernel that the counter does not know; on meta it is two matrix products
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image, torch.empty(1, dtype=torch.int64, device="meta"))
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two


class _KeptBias(nn.Module):
    """The position bias as evaluation keeps it: a constant, whatever it was computed by."""

    bias: Tensor

    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        shape = attention.num_heads, *attention.position_bias.index.shape
        self.register_buffer("bias", torch.empty(shape, device="meta"))

    def forward(self) -> Tensor:
        """The bias (h, n, n)."""
        return self.bias


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

    def forward(self, x: Tensor, keys: Tensor) -> tuple[Tensor, None]:
        """(B, L, C) with the images' keys -> (B, L, C), and no statistics."""
        tokens, experts = x.flatten(0, 1), self.layer.experts
        keys = torch.zeros(len(tokens), dtype=torch.int64)
        routing = self.router(torch.zeros(tokens.shape), keys)
        for _ in range(routing.gates.shape[1]):
            tokens = tokens @ experts.fc1_weight[0] @ experts.fc2_weight[0]
        return tokens.view_as(x), None


def _moe_layers(model: nn.Module) -> list[MoELayer]:
    return [module for module in model.modules() if isinstance(module, MoELayer)]
