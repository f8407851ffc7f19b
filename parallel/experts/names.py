"""The tensors of a model that outlive a run: their global names and shapes, on every layout alike.

Legend: L local experts. An expert's tensors have one name an expert, and the shape of the whole expert.
"""

import torch
from torch import Tensor, nn

from parallel.experts.placement import experts_of, global_name, sliced_of

MASTER, EMA, BUFFER = "master", "ema", "buffer"  # kinds: weights, their average, what no optimizer knows
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW and LAMB
MOMENTUM = "momentum_buffer"  # of SGD
KINDS = (MASTER, *MOMENTS)  # of every parameter, under AdamW
ALL_KINDS = (*KINDS, MOMENTUM, EMA)  # of parameters, under any optimizer


def shape_of(parameter: Tensor) -> torch.Size:
    """The shape of a parameter when it is there whole: ZeRO stage 3 leaves an empty one in its place."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def unsliced_shape(parameter: Tensor) -> list[int]:
    """The shape of a parameter, (L, ...) for a marked one, were its experts not sliced."""
    shape, sliced = list(shape_of(parameter)), sliced_of(parameter)
    if sliced is not None:
        shape[sliced.dim] = sliced.size
    return shape


def own_slice(parameter: Tensor, whole: Tensor) -> Tensor:
    """What a parameter, (L, ...) for a marked one, holds of the same with whole experts: a view."""
    sliced = sliced_of(parameter)
    return whole if sliced is None else sliced.take(whole)


def own_slice_of_expert(parameter: Tensor, whole: Tensor) -> Tensor:
    """What a marked parameter holds of one whole expert's tensor: a view."""
    return own_slice(parameter, whole[None])[0]


def parameter_shapes(module: nn.Module, num_experts: int) -> dict[str, list[int]]:
    """Shape of every parameter of the whole model by global name, whichever experts are here."""
    shapes: dict[str, list[int]] = {}
    for name, parameter in module.named_parameters():
        if experts_of(parameter) is None:
            shapes[name] = list(shape_of(parameter))
        else:
            whole = unsliced_shape(parameter)[1:]
            shapes |= {global_name(name, expert): whole for expert in range(num_experts)}
    return shapes


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that are state, by name; the others are computed from the configuration."""
    kept = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}


def by_global_name(kind: str, name: str, parameter: nn.Parameter, tensor: Tensor) -> dict[str, Tensor]:
    """A parameter's tensor, or each expert's part of it, under the names of the checkpoint."""
    experts = experts_of(parameter)
    if experts is None:
        return {f"{kind}/{name}": tensor}
    pieces = zip(experts, tensor.unbind(0), strict=True)
    return {f"{kind}/{global_name(name, expert)}": piece for expert, piece in pieces}


def to_stored_dtype(buffer: Tensor) -> Tensor:
    """Whole numbers as int64, all else as fp32: the only types of a checkpoint."""
    return buffer.float() if buffer.is_floating_point() else buffer.long()
