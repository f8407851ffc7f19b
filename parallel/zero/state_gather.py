"""One kind of fp32 state of the masters, brought into complete tensors in the precision of the computation.

Each rank casts its flat masters' state and the ranks of a partition gather it, a bounded number of bytes at a
time; nothing is gathered at stage 0. The plan of the copies is made once.

Legend: R ranks that share a flat master, n elements of one rank's part of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.experts.placement import experts_of
from parallel.ranks.collectives import all_gather_single, gather_objects
from parallel.ranks.mesh import Mesh
from parallel.zero.master_weights import MasterWeights
from parallel.zero.segments import FlatMaster, flat_masters

GATHER_BYTES = 64 * 2**20  # of a gathered tensor


class _Copy(NamedTuple):
    """Where a part of a gathered tensor (R, elements) goes."""

    target: Tensor  # a flat view
    rank: int  # its number among the ranks of the master
    first: int


@dataclass(frozen=True)
class _Chunk:
    """The elements [first, last) of each rank's part of a master."""

    master: Tensor
    first: int
    last: int
    ranks: int
    group: dist.ProcessGroup | None  # None is the world, where there are several ranks
    copies: Sequence[_Copy]


class StateGather:
    """Copies one kind of state of the masters into complete tensors; all ranks make and call it together.

    Args:
        engine: DeepSpeed's.
        mesh: the layout.
        targets: for parameters of the model, tensors of their shape that are contiguous, all of one dtype and
            on one device; every rank names the same parameters. State of other parameters is left out.
    """

    def __init__(self, engine: Any, mesh: Mesh, targets: Mapping[nn.Parameter, Tensor]) -> None:
        self._partitioned = int(engine.zero_optimization_stage()) > 0
        self._chunks = [
            chunk
            for flat in flat_masters(engine)
            for chunk in self._plan(flat, mesh, {p: t.view(-1) for p, t in targets.items()})
        ]

    @torch.no_grad()
    def copy(self, masters: MasterWeights, kind: str) -> None:
        """Bring the state of a kind into the targets."""
        for chunk in self._chunks:
            like = chunk.copies[0].target
            part = masters.flat(chunk.master, kind).view(-1)[chunk.first : chunk.last]
            part = part.to(like.device, like.dtype)
            whole = part
            if chunk.ranks > 1:
                whole = part.new_empty(chunk.ranks * len(part))
                all_gather_single(whole, part, chunk.group)
            rows = whole.view(chunk.ranks, -1)
            targets = [copy.target for copy in chunk.copies]
            pieces = [rows[copy.rank, copy.first : copy.first + len(copy.target)] for copy in chunk.copies]
            torch._foreach_copy_(targets, pieces)

    def _plan(self, flat: FlatMaster, mesh: Mesh, targets: Mapping[nn.Parameter, Tensor]) -> list[_Chunk]:
        """The chunks of a master from which a target takes something."""
        if not any(parameter in targets for parameter in flat.parameters):
            return []
        is_expert = experts_of(flat.parameters[0]) is not None
        group = mesh.expert_dp_group if is_expert else None
        numbers = {parameter: number for number, parameter in enumerate(flat.parameters)}
        spans = [(numbers[parameter], *rest) for parameter, *rest in flat.spans]
        by_rank = gather_objects(spans, group) if self._partitioned else [spans]
        size, ranks = flat.master.numel(), len(by_rank)
        like = next(iter(targets.values()))
        step = max(1, GATHER_BYTES // (ranks * like.element_size()))
        chunks = []
        for first in range(0, size, step):
            last = min(size, first + step)
            copies = []
            for rank, spans_of_rank in enumerate(by_rank):
                start = 0
                for number, in_parameter, count, padding in spans_of_rank:
                    lower, upper = max(first, start), min(last, start + count)
                    target = targets.get(flat.parameters[number])
                    if lower < upper and target is not None:
                        begin = in_parameter + lower - start
                        copies.append(_Copy(target[begin : begin + upper - lower], rank, lower - first))
                    start += count + padding
            if copies:
                chunks.append(_Chunk(flat.master, first, last, ranks, group, copies))
        return chunks
