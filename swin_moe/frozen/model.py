"""A trained model as a deployed program runs it.

Legend: B images of h x w pixels, C channels of the last map, L tokens and k choices of an MoE layer.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from swin_moe.backbone.attention import CosineAttention, WindowAttention
from swin_moe.backbone.block import SwinBlock
from swin_moe.backbone.model import SwinTransformer
from swin_moe.errors import require
from swin_moe.frozen.attention import FrozenAttention, FrozenCosineAttention
from swin_moe.frozen.moe import FrozenMoE
from swin_moe.frozen.products import ExpertProducts
from swin_moe.moe.layer import MoELayer


class FrozenOutput(NamedTuple):
    """What a deployed model says of images."""

    logits: Tensor  # (B, classes)
    features: Tensor  # (B, C), the mean over the tokens of the last map
    experts: tuple[Tensor, ...]  # (B, L, k) int64 of each MoE layer in order, best first

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> "FrozenOutput":
        """By name, the tensors that a `FrozenClassifier` gives, or a program that was made of it."""
        logits, features, *experts = tensors
        return FrozenOutput(logits, features, tuple(experts))


class FrozenClassifier(nn.Module):
    """A classifier for images of its configured size: position biases and masks are constants.

    The answer to an image does not depend on its batch, since no expert drops a token. Gradients are off.

    Args:
        model: with all its experts here, in the precision and on the device to run in; it is copied.
        products: how experts are run.

    Raises:
        ModelError: a router that has no answer for an image alone, or a model of clips.
    """

    def __init__(self, model: SwinTransformer, products: ExpertProducts = "gathered") -> None:
        super().__init__()
        require(
            model.config.frames == 0,
            f"a model of clips (model.frames={model.config.frames}) cannot be frozen, as programs are of "
            "images: `swin-moe eval` and `swin-moe predict` run it from its run or a checkpoint",
        )
        self.model = copy.deepcopy(model).eval()
        with torch.no_grad():
            for block in self.model.modules():
                if isinstance(block, SwinBlock):
                    _freeze(block, products)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Classify images (B, channels, h, w), normalised, fp32.

        Returns:
            The tensors of a `FrozenOutput` in order, since packages of AOTInductor know no other tuples.
        """
        keys = torch.zeros(images.shape[:1], dtype=torch.int64, device=images.device)
        features, experts = self.model.forward_pooled(images, keys)
        logits = self.model.head(features)
        return logits.float(), features.float(), *experts.values()


def _freeze(block: SwinBlock, products: ExpertProducts) -> None:
    """Replace what a block needs in training alone."""
    mixer, height, width = block.attention, *block.options.resolution
    if isinstance(mixer, WindowAttention):
        is_cosine = isinstance(mixer, CosineAttention)
        block.attention = (FrozenCosineAttention if is_cosine else FrozenAttention)(mixer, block.mask)
        block.mask = None  # a part of the bias now
    if isinstance(block.mlp, MoELayer):
        block.add_module("mlp", FrozenMoE(block.mlp, products, height * width))
