"""Global names and shapes of the tensors of a checkpoint, the same on every layout.

Each expert has a name of its own, and the shape of the unsliced expert. Legend: L local experts.
"""

import torch
from torch import Tensor, nn

from parallel.experts.placement import experts_of, global_name, sliced_of

MASTER, EMA, BUFFER = "master", "ema", "buffer"  # kinds: weights, their average, buffers of the model
TEACHER, STATE = "teacher", "state"  # kinds: the average that a teacher computes with, state of a task
AVERAGES = (EMA, TEACHER)  # moving averages of the masters, which start at them
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW and LAMB
MOMENTUM = "momentum_buffer"  # of SGD
KINDS = (MASTER, *MOMENTS)  # of every parameter, under AdamW
ALL_KINDS = (*KINDS, MOMENTUM, *AVERAGES)  # of parameters, under any optimizer


def shape_of(parameter: Tensor) -> torch.Size:
    """The shape of a parameter before ZeRO stage 3 partitioned it, which leaves an empty tensor."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def unsliced_shape(parameter: Tensor) -> list[int]:
    """The shape of a parameter, (L, ...) for a marked one, with unsliced experts."""
    shape, sliced = list(shape_of(parameter)), sliced_of(parameter)
    if sliced is not None:
        shape[sliced.dim] = sliced.size
    return shape


def own_slice(parameter: Tensor, unsliced: Tensor) -> Tensor:
    """The slice that a parameter holds of the same tensor with unsliced experts, (L, ...): a view."""
    sliced = sliced_of(parameter)
    return unsliced if sliced is None else sliced.take(unsliced)


def own_slice_of_expert(parameter: Tensor, unsliced: Tensor) -> Tensor:
    """The slice that a marked parameter holds of one unsliced expert's tensor: a view."""
    return own_slice(parameter, unsliced[None])[0]


def parameter_shapes(module: nn.Module, num_experts: int) -> dict[str, list[int]]:
    """Shape of every parameter of the complete model by global name, whichever experts this rank has."""
    shapes: dict[str, list[int]] = {}
    for name, parameter in module.named_parameters():
        if experts_of(parameter) is None:
            shapes[name] = list(shape_of(parameter))
        else:
            shape = unsliced_shape(parameter)[1:]
            shapes |= {global_name(name, expert): shape for expert in range(num_experts)}
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
    """Integers as int64, all else as fp32: the only dtypes of a checkpoint."""
    return buffer.float() if buffer.is_floating_point() else buffer.long()
