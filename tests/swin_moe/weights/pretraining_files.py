"""Files as the released codes of MoBY (Transformer-SSL) and FD (Feature-Distillation) write them."""

import re

import torch
from torch import Tensor

from tests.models import randn


def encoder_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"encoder.{name}": t for name, t in tensors.items() if not name.startswith("head.")}


def projection(name: str, channels: int) -> dict[str, Tensor]:
    """MoBY's Identity, Linear, BatchNorm1d, ReLU; and Linear."""
    hidden = f"{name}.linear_hidden"
    return {
        f"{hidden}.1.weight": randn(6, channels),
        f"{hidden}.1.bias": randn(6),
        **{f"{hidden}.2.{leaf}": randn(6) for leaf in ("weight", "bias", "running_mean", "running_var")},
        f"{hidden}.2.num_batches_tracked": torch.tensor(7),
        f"{name}.linear_out.weight": randn(4, 6),
        f"{name}.linear_out.bias": randn(4),
    }


def moby(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What SwinTransformer/Transformer-SSL saves of a Swin with these weights."""
    own = encoder_of(tensors)
    return {
        "queue1": randn(4, 8),
        "queue2": randn(4, 8),
        "queue_ptr": torch.zeros(1, dtype=torch.int64),
        **own,
        **{name.replace("encoder.", "encoder_k."): randn(*t.shape) for name, t in own.items()},
        **projection("projector", 16),
        **projection("projector_k", 16),
        **projection("predictor", 4),
    }


def fd(tensors: dict[str, Tensor], *, shared: bool = False, teacher: str = "swin") -> dict[str, Tensor]:
    """What SwinTransformer/Feature-Distillation saves of a student with these weights."""
    own: dict[str, Tensor] = {}
    for name, tensor in encoder_of(tensors).items():
        name = name.replace(".cpb_mlp.", ".rpe_mlp.")
        bias = r"blocks\.\d+\.attn\.(rpe_mlp|relative_)"
        own[re.sub(bias, r"rel_pos_bias.\1", name) if shared else name] = tensor
    block = {"swin": "layers.0.blocks.5.attn.qkv.weight", "vit": "blocks.0.attn.qkv.weight"}[teacher]
    others = {"patch_embed.proj.weight": randn(8, 3, 4, 4), block: randn(24, 8), "norm.weight": randn(8)}
    return {
        **own,
        **{f"feature_model.{name}": tensor for name, tensor in others.items()},
        "decoder.0.weight": randn(8, 16, 1),
        "decoder.0.bias": randn(8),
    }
