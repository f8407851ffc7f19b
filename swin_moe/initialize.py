"""Initial weights as a pure function of (seed, global parameter name), whatever the layout."""

import hashlib
import math

import torch
from torch import Tensor, nn

from parallel.expert import experts_of, global_name


@torch.no_grad()
def initialize(model: nn.Module, *, seed: int, std: float) -> None:
    """Fill every parameter in place; each expert's slice comes from a generator of its own."""
    for name, parameter in model.named_parameters():
        experts = experts_of(parameter)
        if experts is None:
            _fill(name, parameter, _generator(seed, name), std)
            continue
        for expert, piece in zip(experts, parameter.unbind(0), strict=True):
            _fill(name, piece, _generator(seed, global_name(name, expert)), std)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _fill(name: str, piece: Tensor, generator: torch.Generator, std: float) -> None:
    """Patch projection as a convolution, norms 1, biases 0, the rest a truncated normal."""
    if name == "patch_embed.proj.weight":
        bound = 1.0 / math.sqrt(piece[0].numel())
        nn.init.uniform_(piece, -bound, bound, generator=generator)
    elif name.endswith("bias"):
        piece.zero_()
    elif piece.dim() == 1:
        piece.fill_(1.0)
    else:
        nn.init.trunc_normal_(piece, std=std, generator=generator)
