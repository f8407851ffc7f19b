"""A small model of clips, and its weights under the names of the released files, mapped by hand."""

import itertools
import re
from dataclasses import replace

import torch
from torch import Tensor

from swin_moe import ModelConfig, SwinTransformer
from tests.swin_moe.weights.official_files import SWIN, official

# maps of 4 x 6 x 6 and 4 x 3 x 3 tokens with windows of 2 x 3 x 3; stage 0 shifts along all axes, and stage 1
# has one block
CLIPS = replace(SWIN, frames=8, window_frames=2, window_padding="fitted")
DIALECTS = {"official": "official video", "mmaction": "mmaction2 video", "torchvision": "torchvision video"}


def slow_index(window: tuple[int, int, int]) -> Tensor:
    """Row ((dd + d - 1)(2h - 1) + dh + h - 1)(2w - 1) + dw + w - 1 of each pair of tokens: (n, n)."""
    d, h, w = window
    tokens = list(itertools.product(range(d), range(h), range(w)))
    return torch.tensor(
        [
            [
                ((a - i + d - 1) * (2 * h - 1) + b - j + h - 1) * (2 * w - 1) + c - k + w - 1
                for i, j, k in tokens
            ]
            for a, b, c in tokens
        ]
    )


def released(
    model: SwinTransformer, dialect: str, window: tuple[int, int, int] = (2, 3, 3)
) -> dict[str, Tensor]:
    """A model's weights as a released file has them, with the indices of its windows.

    Args:
        model: of `CLIPS`, or one of other windows.
        dialect: one of DIALECTS.
        window: of the model.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in official(model, "swin").items():
        if name.endswith("attn_mask"):
            continue
        if name.endswith("relative_position_index"):
            tensor = slow_index(window)
        tensors[torchvision_name(name) if dialect == "torchvision" else openmmlab_name(name, dialect)] = (
            tensor
        )
    return tensors


def torchvision_name(name: str) -> str:
    """torchvision's name of a tensor with an official name of images."""
    name = re.sub(r"^layers\.(\d)\.blocks\.", lambda match: f"features.{2 * int(match[1])}.", name)
    name = re.sub(r"^layers\.(\d)\.downsample\.", lambda match: f"features.{2 * int(match[1]) + 1}.", name)
    return name.replace(".fc1.", ".0.").replace(".fc2.", ".3.")


def openmmlab_name(name: str, dialect: str) -> str:
    """The name in an official file of clips, or in mmaction2, of a tensor with an official name of images."""
    if name.startswith("head."):
        return name.replace("head.", "cls_head.fc_cls.")
    if name.startswith("norm.") and dialect == "mmaction":
        return name.replace("norm.", "backbone.norm1.")
    return f"backbone.{name}"


def on_file(tensors: dict[str, Tensor], dialect: str) -> object:
    """What is saved: torchvision's state dict alone, those of OpenMMLab's code with what is beside it."""
    return tensors if dialect == "torchvision" else {"meta": {"epoch": 30}, "state_dict": tensors}


def still(images: Tensor, frames: int) -> Tensor:
    """Clips of equal frames: (B, C, h, w) -> (B, C, frames, h, w)."""
    return images[:, :, None].expand(-1, -1, frames, -1, -1)


def clips_of(config: ModelConfig, **changes: object) -> ModelConfig:
    """A model of clips with the blocks of one of images, all else as `CLIPS`."""
    own = {"frames": 8, "window_frames": 2, "window_padding": "fitted"}
    return replace(config, **(own | changes))
