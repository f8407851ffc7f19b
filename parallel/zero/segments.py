"""Which tensors of the model a master is made of, at every ZeRO stage: for what must know whole tensors.

A rank's master may hold a part of one tensor, many tensors, or the experts of a layer; each expert is a
tensor of its own, so that nothing depends on who holds which. Who reads this asks how long a tensor is, by
sums over all that hold a part of it.

Legend: N pieces of a master, T tensors that the ranks which share its group hold together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.experts.names import shape_of
from parallel.experts.placement import experts_of
from parallel.ranks.collectives import sum_over
from parallel.ranks.mesh import Mesh

Span = tuple[nn.Parameter, int, int, int]  # parameter, first element of it, how many, and the padding behind


@dataclass(frozen=True)
class Segments:
    """The pieces that a flat master consists of, in order.

    Args:
        sizes: (N,) elements of each.
        tensors: (N,) the number of each one's tensor; T for padding.
        count: T.
        groups: over which to sum, one after the other, for whole tensors; None is the world.
    """

    sizes: Sequence[int]
    tensors: Sequence[int]
    count: int
    groups: Sequence[dist.ProcessGroup | None] = ()

    def norms(self, *values: Tensor) -> Tensor:
        """The L2 norms of whole tensors, for each piece of one or more flat ones: (values, N) in fp64."""
        index = torch.tensor(self.tensors, device=values[0].device)
        squares = torch.zeros(len(values), self.count + 1, dtype=torch.float64, device=values[0].device)
        for row, value in zip(squares, values, strict=True):
            norms = torch._foreach_norm(value.split(list(self.sizes)))
            row[index] = torch.stack(list(norms)).double().square()
        for group in self.groups:
            squares = sum_over(squares, group)
        return squares[:, index].sqrt()

    def spread(self, values: Tensor) -> Tensor:
        """One number a piece, (N,), for every element."""
        sizes = torch.tensor(self.sizes, device=values.device)
        return values.repeat_interleave(sizes, output_size=sum(self.sizes))


def segments_of(engine: Any, mesh: Mesh) -> dict[Tensor, Segments]:
    """The pieces of every master of DeepSpeed's engine."""
    stage, optimizer = int(engine.zero_optimization_stage()), engine.optimizer
    found: dict[Tensor, Segments] = {}
    if stage == 0:
        for parameter, master in _whole(optimizer, engine.module):
            span = (parameter, 0, parameter.numel(), 0)
            found[master] = _pieces([span], [parameter], _groups(parameter, mesh, cut=False))
        return found
    if stage == 3:
        groups, masters = optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat
    else:
        groups = getattr(optimizer, "bf16_groups", None) or optimizer.bit16_groups
        masters = [master for group in engine.basic_optimizer.param_groups for master in group["params"]]
    for parameters, master in zip(groups, masters, strict=True):
        spans = _own_parts(parameters) if stage == 3 else _fragments(parameters, master.numel())
        found[master] = _pieces(spans, parameters, _groups(parameters[0], mesh, cut=True))
    return found


def _whole(optimizer: Any, module: nn.Module) -> Iterable[tuple[nn.Parameter, Tensor]]:
    if not hasattr(optimizer, "fp32_groups"):
        return ((parameter, parameter) for parameter in module.parameters())
    groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return (pair for low, high in groups for pair in zip(low, high, strict=True))


def _groups(parameter: nn.Parameter, mesh: Mesh, *, cut: bool) -> list[dist.ProcessGroup | None]:
    """Who holds parts of a parameter's tensors: the holders of its partitions, and of its slices."""
    if experts_of(parameter) is None:
        return [None] if cut else []
    slices = mesh.dims.expert_tensor_parallel_size
    holders = [mesh.expert_dp_group] if cut else []
    return [*holders, mesh.exchange_groups[slices].gather] if slices > 1 else holders


def _fragments(parameters: Sequence[Any], size: int) -> list[Span]:
    """Stages 1 and 2: each parameter is linked to what of it lies in this rank's partition."""
    here = [(p, p._hp_mapping) for p in parameters if p._hp_mapping is not None]
    here.sort(key=lambda pair: pair[1].hp_fragment_address.start)
    starts = [mapping.hp_fragment_address.start for _, mapping in here]
    spans: list[Span] = []
    for (parameter, mapping), end in zip(here, [*starts[1:], size], strict=True):
        address, start = mapping.lp_fragment_address, mapping.hp_fragment_address.start
        spans.append((parameter, address.start, address.numel, end - start - address.numel))
    return spans or [(parameters[0], 0, 0, size)]  # nothing but padding


def _own_parts(parameters: Sequence[Any]) -> list[Span]:
    """Stage 3: each parameter is cut evenly over its holders, and the end of the last part is padding."""
    spans: list[Span] = []
    for parameter in parameters:
        size = parameter.ds_tensor.ds_numel
        first = parameter.ds_zero_partition_rank * size
        held = max(0, min(size, parameter.ds_numel - first))
        spans.append((parameter, first, held, size - held))
    return spans


def _pieces(
    spans: Sequence[Span], parameters: Sequence[nn.Parameter], groups: Sequence[dist.ProcessGroup | None]
) -> Segments:
    """Cut every span where one expert ends and the next begins."""
    numbers, count = {}, 0
    for parameter in parameters:
        numbers[parameter] = count
        count += len(experts_of(parameter) or (0,))
    sizes, tensors = [], []
    for parameter, first, length, padding in spans:
        each = shape_of(parameter).numel() // len(experts_of(parameter) or (0,))
        while length:
            size = min(length, each - first % each)
            sizes.append(size)
            tensors.append(numbers[parameter] + first // each)
            first, length = first + size, length - size
        if padding:
            sizes.append(padding)
            tensors.append(count)
    return Segments(sizes, tensors, count, groups)
