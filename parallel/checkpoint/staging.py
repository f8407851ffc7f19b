"""What a rank owns of a checkpoint, copied to host memory: all that a step of training waits for."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from parallel.experts.names import BUFFER, by_global_name, persistent_buffers, to_stored_dtype, unsliced_shape
from parallel.experts.placement import ExpertSlice, experts_of, sliced_of
from parallel.ranks.collectives import all_to_all, gather_objects
from parallel.ranks.mesh import Mesh
from parallel.zero.master_weights import MasterWeights

ALIGNMENT = 64  # bytes, of a tensor in a slab
SLAB = 2**26  # bytes; a power of two, to which torch rounds each pinned allocation


class Slabs:
    """Pinned memory in few large pieces, out of which tensors are cut.

    Pinned one by one, each tensor would be rounded up to a power of two, and thousands of system calls would
    lie inside of the first save.

    Args:
        pinned: whether to pin it; a test on a machine without a GPU does not.
    """

    def __init__(self, *, pinned: bool = True) -> None:
        self._pinned = pinned
        self._free = torch.empty(0, dtype=torch.uint8)
        self.reserved = 0  # bytes

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor whose values are anything; one of more than a slab has memory of its own."""
        size = math.prod(shape) * dtype.itemsize
        room = -(-size // ALIGNMENT) * ALIGNMENT
        if room > SLAB:
            return self._piece(size).view(dtype).view(shape)
        if room > len(self._free):
            self._free = self._piece(SLAB)
        piece, self._free = self._free[:size], self._free[room:]
        return piece.view(dtype).view(shape)

    def _piece(self, size: int) -> Tensor:
        self.reserved += size
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)


class StagingBuffers:
    """Host memory for one rank's share of a checkpoint, pinned beside a GPU, and used again by every save."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}
        self._slabs = Slabs()

    @torch.no_grad()
    def copy(self, masters: MasterWeights, mesh: Mesh) -> dict[str, Tensor]:
        """Copy this rank's share, by global name; every rank calls it together.

        The tensors are good until the next call.
        """
        taken = {name: self._copy(name, tensor) for name, tensor in owned_tensors(masters, mesh)}
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies to pinned memory are under way until here
        self._memory = taken
        return dict(taken)

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        memory = self._memory.get(name)
        if memory is None:
            make = self._slabs.empty if tensor.is_cuda else torch.empty
            memory = make(tensor.shape, dtype=tensor.dtype)
        return memory.copy_(tensor, non_blocking=True)


def owned_tensors(masters: MasterWeights, mesh: Mesh) -> Iterator[tuple[str, Tensor]]:
    """This rank's share of all tensors by global name: each parameter is written by one of its holders.

    A partition of ZeRO's that holds all of a parameter is read by its rank alone. Any other parameter is read
    by all holders together, and the slices of one copy of an expert come together; the one that has least to
    write so far keeps it.
    """
    slices = mesh.dims.expert_tensor_parallel_size
    burden = {True: [0] * mesh.dims.dp_size * slices, False: [0] * mesh.dims.world_size}
    ready = _ready_places(masters, mesh)
    for name, parameter in masters.module.named_parameters():
        experts = experts_of(parameter)
        holders = burden[experts is not None]
        owner = min(ready[name] or range(len(holders)), key=holders.__getitem__)
        holders[owner] += math.prod(unsliced_shape(parameter))
        place = mesh.rank if experts is None else mesh.rank // mesh.dims.ep_size * slices + mesh.rank % slices
        if ready[name] and place != owner:
            continue
        values = masters.read_local(parameter) if ready[name] else masters.read(parameter)
        assert values is not None
        for kind, tensor in values.items():
            if sliced_of(parameter) is not None and place // slices == owner // slices:
                tensor = _joined(parameter, tensor, owner % slices, mesh)
            if place == owner:
                yield from by_global_name(kind, name, parameter, tensor).items()
    if mesh.is_first:
        for name, buffer in persistent_buffers(masters.module).items():
            yield f"{BUFFER}/{name}", to_stored_dtype(buffer)


def _ready_places(masters: MasterWeights, mesh: Mesh) -> dict[str, list[int]]:
    """For each parameter of this rank the places among its holders that need no other to read it."""
    named = dict(masters.module.named_parameters())
    here = [masters.read_local(parameter) is not None for parameter in named.values()]
    ep_size, told = mesh.dims.ep_size, gather_objects(here)
    places: dict[str, list[int]] = {}
    for number, (name, parameter) in enumerate(named.items()):
        ranks = [rank for rank, ready in enumerate(told) if ready[number]]
        if experts_of(parameter) is None:
            places[name] = ranks
        else:  # of the same experts; slices have to come together in any case
            same = [rank for rank in ranks if rank % ep_size == mesh.ep_rank]
            places[name] = (
                [rank // ep_size for rank in same] if mesh.dims.expert_tensor_parallel_size == 1 else []
            )
    return places


@torch.no_grad()
def _joined(parameter: nn.Parameter, tensor: Tensor, owner: int, mesh: Mesh) -> Tensor:
    """One tensor of sliced experts, whole, at the slice numbered `owner`; all slices of a block call it.

    Elsewhere it is what was given.
    """
    sliced, slices = sliced_of(parameter), mesh.dims.expert_tensor_parallel_size
    if sliced is None or slices == 1:
        return tensor
    shapes = [list(tensor.shape) for _ in range(slices)]
    for number, shape in enumerate(shapes):
        shape[sliced.dim] = len(ExpertSlice(number, number + 1, slices).range(sliced.size))
    here = mesh.rank % slices
    send = [tensor.numel() if number == owner else 0 for number in range(slices)]
    receive = [math.prod(shape) if here == owner else 0 for shape in shapes]
    flat = all_to_all(tensor.reshape(-1), send, receive, mesh.exchange_groups[slices].gather)
    if here != owner:
        return tensor
    pieces = zip(flat.split(receive), shapes, strict=True)
    return torch.cat([piece.view(shape) for piece, shape in pieces], dim=sliced.dim)
