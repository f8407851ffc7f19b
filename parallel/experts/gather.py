"""Expert weights gathered from neighbouring ranks, and their gradients returned to them.

Legend: L local experts of a rank, g ranks.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.experts.names import unsliced_shape
from parallel.experts.placement import ExpertSlice, sliced_of
from parallel.ranks.collectives import all_to_all


def gather_expert_weights(
    weights: Sequence[nn.Parameter],
    parts: Sequence[tuple[range, ExpertSlice]],
    group: dist.ProcessGroup | None,
) -> list[Tensor]:
    """Gather the weights of all ranks of `group`, differentiably: gradients are summed at their owners.

    Args:
        weights: marked parameters of this rank, (L, ...) each; they travel together.
        parts: the experts of each rank of the group, and its slice of them.
        group: neighbouring ranks; None is this rank alone.

    Returns:
        For each weight, (experts of all ranks, ...), with neighbouring slices joined along the sliced dim.
    """
    if group is None:
        return list(weights)
    shapes = [[_shape(weight, *part) for weight in weights] for part in parts]  # by rank
    sizes = [[math.prod(shape) for shape in of_rank] for of_rank in shapes]
    flat = torch.cat([weight.reshape(-1) for weight in weights])
    count = len(parts)
    gathered = all_to_all(flat.repeat(count), [len(flat)] * count, [sum(s) for s in sizes], group)
    pieces = iter(gathered.split(list(itertools.chain(*sizes))))
    by_rank = [[next(pieces).view(shape) for shape in of_rank] for of_rank in shapes]
    return [_join(weight, [of_rank[i] for of_rank in by_rank], parts) for i, weight in enumerate(weights)]


def expert_numel(weight: nn.Parameter) -> int:
    """Elements of a marked parameter for one complete expert."""
    return math.prod(unsliced_shape(weight)[1:])


def _shape(weight: nn.Parameter, experts: range, part: ExpertSlice) -> list[int]:
    """The shape of the same parameter at a rank with those experts and that slice."""
    shape, sliced = list(weight.shape), sliced_of(weight)
    shape[0] = len(experts)
    if sliced is not None:
        shape[sliced.dim] = len(part.range(sliced.size))
    return shape


def _join(weight: nn.Parameter, pieces: list[Tensor], parts: Sequence[tuple[range, ExpertSlice]]) -> Tensor:
    """Join slices of the same experts along the sliced dim, then different experts along the first."""
    sliced, blocks = sliced_of(weight), []
    for _, block in itertools.groupby(zip(parts, pieces, strict=True), key=lambda pair: pair[0][0]):
        slices = [piece for _, piece in block]
        blocks.append(slices[0] if sliced is None else torch.cat(slices, dim=sliced.dim))
    return torch.cat(blocks)
