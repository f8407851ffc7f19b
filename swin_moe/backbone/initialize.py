"""Initial weights as a pure function of (seed, global parameter name), whatever the layout."""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from parallel.experts.names import own_slice_of_expert, unsliced_shape
from parallel.experts.placement import experts_of, global_name
from parallel.zero.init import gathered
from swin_moe.moe.routers.topk import CosineTopKRouter

Filler = Callable[[Tensor, torch.Generator], object]  # fills a tensor in place


@torch.no_grad()
def initialize(
    model: nn.Module,
    *,
    seed: int,
    std: float,
    zero_branch_norms: bool = False,
) -> None:
    """Fill every parameter in place, partitioned or not; each expert, whole or sliced, by its own generator.

    A module whose parameters start otherwise than those of a Swin has a method `fill_parameter(name, values,
    generator)`, with the name of a parameter in the module.

    Constant buffers are computed again, so that a model built on the meta device becomes whole.

    Args:
        model: whose parameters have their final names.
        seed: of all weights.
        std: of the truncated normals.
        zero_branch_norms: SwinV2 starts with every residual branch at zero (its `norm1` and `norm2`).
    """
    for module in model.modules():
        reset = getattr(module, "reset_buffers", None)
        if callable(reset):
            reset()
    for name, parameter in model.named_parameters():
        with gathered(parameter):
            if zero_branch_norms and name.split(".")[-2:-1] in (["norm1"], ["norm2"]):
                parameter.zero_()
            else:
                _fill_parameter(name, parameter, seed, _filler(model, name, std))


def _filler(model: nn.Module, name: str, std: float) -> Filler:
    """What fills the values of a parameter: its module, or the rule of a Swin."""
    path, _, own_name = name.rpartition(".")
    fill = getattr(model.get_submodule(path), "fill_parameter", None)
    if fill is not None:
        return partial(fill, own_name)
    return lambda values, generator: _fill(name, values, generator, std)


def _fill_parameter(name: str, parameter: nn.Parameter, seed: int, fill: Filler) -> None:
    experts = experts_of(parameter)
    if experts is None:
        parameter.copy_(_drawn(_generator(seed, name), parameter, parameter.shape, fill))
        return
    shape = unsliced_shape(parameter)[1:]
    for expert, piece in zip(experts, parameter.unbind(0), strict=True):
        entire = _drawn(_generator(seed, global_name(name, expert)), parameter, shape, fill)
        piece.copy_(own_slice_of_expert(parameter, entire))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _drawn(generator: torch.Generator, like: Tensor, shape: Sequence[int], fill: Filler) -> Tensor:
    """Initial values of a shape, in host memory: a CPU generator cannot fill a tensor on a GPU.

    With ZeRO 3 parameters are on the GPU when they are initialized. Their values must not depend on that.
    """
    values = torch.empty(shape, dtype=like.dtype)
    fill(values, generator)
    return values


def _fill(name: str, piece: Tensor, generator: torch.Generator, std: float) -> None:
    """Patch projection and SimMIM's decoder as convolutions, norms 1, biases 0, the rest a truncated normal.

    SwinV2's temperatures start at 10, the cosine router's at 2 (as logarithms), its experts at normals.
    """
    if name.endswith(("patch_embed.proj.weight", "decoder.weight")):
        bound = 1.0 / math.sqrt(piece[0].numel())
        nn.init.uniform_(piece, -bound, bound, generator=generator)
    elif name.endswith("bias"):
        piece.zero_()
    elif name.endswith("logit_scale"):
        piece.fill_(math.log(10.0))
    elif name.endswith("temperature"):
        piece.fill_(CosineTopKRouter.start)
    elif name.endswith("sim_matrix"):
        nn.init.normal_(piece, std=0.01, generator=generator)
    elif piece.dim() == 1:
        piece.fill_(1.0)
    else:
        nn.init.trunc_normal_(piece, std=std, generator=generator)
