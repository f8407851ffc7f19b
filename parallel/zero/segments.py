"""The segments of flat master weights, one a tensor of the model, at every ZeRO stage: for norms of tensors.

A rank's master may hold a part of one tensor, many tensors, or the experts of a layer; each expert is a
tensor of its own, so that norms do not depend on the layout. The norm of a tensor is a sum over all ranks
that hold a part of it.

Legend: N segments of a master, T tensors that the ranks of its group hold together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """The consecutive segments of a flat master.

    Args:
        sizes: (N,) elements of each.
        tensors: (N,) the number of each one's tensor; T for padding.
        count: T.
        groups: over which to sum, one after the other, for complete tensors; None is the world.
    """

    sizes: Sequence[int]
    tensors: Sequence[int]
    count: int
    groups: Sequence[dist.ProcessGroup | None] = ()

    def norms(self, *values: Tensor) -> Tensor:
        """The L2 norm of each segment's complete tensor, for one or more flat values: (values, N) in fp64."""
        index = torch.tensor(self.tensors, device=values[0].device)
        squares = torch.zeros(len(values), self.count + 1, dtype=torch.float64, device=values[0].device)
        for row, value in zip(squares, values, strict=True):
            norms = torch._foreach_norm(value.split(list(self.sizes)))
            row[index] = torch.stack(list(norms)).double().square()
        for group in self.groups:
            squares = sum_over(squares, group)
        return squares[:, index].sqrt()

    def spread(self, values: Tensor) -> Tensor:
        """Repeat one number a segment, (N,), for every element."""
        sizes = torch.tensor(self.sizes, device=values.device)
        return values.repeat_interleave(sizes, output_size=sum(self.sizes))


def segments_of(engine: Any, mesh: Mesh) -> dict[Tensor, Segments]:
    """The segments of every master of DeepSpeed's engine."""
    partitioned = int(engine.zero_optimization_stage()) > 0
    return {
        flat.master: _segments(flat.spans, flat.parameters, _groups(flat.parameters[0], mesh, partitioned))
        for flat in flat_masters(engine)
    }


class FlatMaster(NamedTuple):
    """A flat master of this rank, and which parts of which parameters it consists of."""

    master: Tensor
    parameters: Sequence[nn.Parameter]  # of its group, the same on all ranks that hold parts of them
    spans: Sequence[Span]  # end to end they are the master


def flat_masters(engine: Any) -> Iterator[FlatMaster]:
    """The masters of DeepSpeed's engine; they are the keys of the optimizer's states."""
    stage, optimizer = int(engine.zero_optimization_stage()), engine.optimizer
    if stage == 0:
        for parameter, master in unpartitioned_masters(optimizer, engine.module):
            if parameter.requires_grad:
                yield FlatMaster(master, [parameter], [(parameter, 0, parameter.numel(), 0)])
        return
    if stage == 3:
        groups, masters = optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat
    else:
        groups = getattr(optimizer, "bf16_groups", None) or optimizer.bit16_groups
        masters = [master for group in engine.basic_optimizer.param_groups for master in group["params"]]
    for parameters, master in zip(groups, masters, strict=True):
        spans = _own_partitions(parameters) if stage == 3 else _fragments(parameters, master.numel())
        yield FlatMaster(master, parameters, spans)


def unpartitioned_masters(optimizer: Any, module: nn.Module) -> Iterable[tuple[nn.Parameter, Tensor]]:
    """Stage 0: each parameter and its fp32 master, which in fp32 is the parameter itself."""
    if not hasattr(optimizer, "fp32_groups"):
        return ((parameter, parameter) for parameter in module.parameters())
    groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return (pair for low, high in groups for pair in zip(low, high, strict=True))


def _groups(parameter: nn.Parameter, mesh: Mesh, partitioned: bool) -> list[dist.ProcessGroup | None]:
    """The groups whose ranks hold parts of a parameter's tensors: its partitions, and its slices."""
    if experts_of(parameter) is None:
        return [None] if partitioned else []
    slices = mesh.dims.expert_tensor_parallel_size
    holders = [mesh.expert_dp_group] if partitioned else []
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


def _own_partitions(parameters: Sequence[Any]) -> list[Span]:
    """Stage 3: each parameter is partitioned evenly over its ranks, and the last partition is padded."""
    spans: list[Span] = []
    for parameter in parameters:
        size = parameter.ds_tensor.ds_numel
        first = parameter.ds_zero_partition_rank * size
        held = max(0, min(size, parameter.ds_numel - first))
        spans.append((parameter, first, held, size - held))
    return spans


def _segments(
    spans: Sequence[Span], parameters: Sequence[nn.Parameter], groups: Sequence[dist.ProcessGroup | None]
) -> Segments:
    """Divide every span where one expert ends and the next begins."""
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
