"""The copy of a rank's tensors of a checkpoint to host memory: all that training waits for."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from parallel.experts.names import (
    BUFFER,
    STATE,
    by_global_name,
    persistent_buffers,
    to_stored_dtype,
    unsliced_shape,
)
from parallel.experts.placement import ExpertSlice, experts_of, sliced_of
from parallel.ranks.collectives import all_to_all, gather_objects
from parallel.ranks.mesh import Mesh
from parallel.zero.master_weights import MasterWeights
from parallel.zero.persistent_state import check_same_on_ranks

ALIGNMENT = 64  # bytes, of a tensor in a slab
NO_STATE: Mapping[str, Tensor] = MappingProxyType({})
SLAB = 2**26  # bytes; a power of two, to which torch rounds each pinned allocation


class Slabs:
    """Pinned memory in few large allocations, out of which tensors are taken.

    Pinned one by one, each tensor would be rounded up to a power of two, and the first save would make
    thousands of system calls.

    Args:
        pinned: whether to pin it, which needs a GPU.
        slab_bytes: of an allocation.
    """

    def __init__(self, *, pinned: bool = True, slab_bytes: int = SLAB) -> None:
        self._pinned, self._slab_bytes = pinned, slab_bytes
        self._free = torch.empty(0, dtype=torch.uint8)
        self.reserved = 0  # bytes

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor; one of more than a slab has an allocation of its own."""
        size = math.prod(shape) * dtype.itemsize
        aligned = -(-size // ALIGNMENT) * ALIGNMENT
        if aligned > self._slab_bytes:
            return self._allocate(size).view(dtype).view(shape)
        if aligned > len(self._free):
            self._free = self._allocate(self._slab_bytes)
        memory, self._free = self._free[:size], self._free[aligned:]
        return memory.view(dtype).view(shape)

    def _allocate(self, size: int) -> Tensor:
        self.reserved += size
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)


class StagingBuffers:
    """Host memory for the tensors that one rank saves, pinned if there is a GPU, and reused by every save."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}
        self._slabs = Slabs()

    @property
    def pinned_bytes(self) -> int:
        """Bytes of pinned memory."""
        return self._slabs.reserved

    @torch.no_grad()
    def copy(
        self, masters: MasterWeights, mesh: Mesh, state: Mapping[str, Tensor] = NO_STATE
    ) -> dict[str, Tensor]:
        """Copy the tensors that this rank owns, by global name; every rank calls it together.

        The copies are valid until the next call.

        Raises:
            StateError: a buffer of the model or the task's state differs between ranks.
        """
        copies = {name: self._copy(name, tensor) for name, tensor in owned_tensors(masters, mesh, state)}
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # copies to pinned memory are asynchronous
        self._memory = copies
        return dict(copies)

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        memory = self._memory.get(name)
        if memory is None:
            make = self._slabs.empty if tensor.is_cuda else torch.empty
            memory = make(tensor.shape, dtype=tensor.dtype)
        return memory.copy_(tensor, non_blocking=True)


def owned_tensors(
    masters: MasterWeights, mesh: Mesh, state: Mapping[str, Tensor] = NO_STATE
) -> Iterator[tuple[str, Tensor]]:
    """The tensors that this rank writes, by global name: one of the ranks that hold a parameter writes it.

    Rank 0 writes what every rank holds: buffers and the task's state.

    A ZeRO partition that has a complete parameter is read by its rank alone. Any other parameter is read by
    all its holders together, and the slices of one copy of an expert are gathered; the holder with the fewest
    elements so far writes it.
    """
    slices = mesh.dims.expert_tensor_parallel_size
    loads = {True: [0] * mesh.dims.dp_size * slices, False: [0] * mesh.dims.world_size}
    ready = _ready_holders(masters, mesh)
    for name, parameter in masters.module.named_parameters():
        experts = experts_of(parameter)
        load = loads[experts is not None]  # elements by holder
        owner = min(ready[name] or range(len(load)), key=load.__getitem__)
        load[owner] += math.prod(unsliced_shape(parameter))
        holder = (
            mesh.rank if experts is None else mesh.rank // mesh.dims.ep_size * slices + mesh.rank % slices
        )
        if ready[name] and holder != owner:
            continue
        values = masters.read_local(parameter) if ready[name] else masters.read(parameter)
        assert values is not None
        for kind, tensor in values.items():
            if sliced_of(parameter) is not None and holder // slices == owner // slices:
                tensor = _joined(parameter, tensor, owner % slices, mesh)
            if holder == owner:
                yield from by_global_name(kind, name, parameter, tensor).items()
    replicated = {
        f"{kind}/{name}": to_stored_dtype(tensor)
        for kind, tensors in ((BUFFER, persistent_buffers(masters.module)), (STATE, state))
        for name, tensor in tensors.items()
    }
    if replicated:
        check_same_on_ranks(replicated)
    if mesh.is_first:
        yield from replicated.items()


def _ready_holders(masters: MasterWeights, mesh: Mesh) -> dict[str, list[int]]:
    """For each parameter of this rank, the numbers of those holders that can read it without the others."""
    named = dict(masters.module.named_parameters())
    here = [masters.read_local(parameter) is not None for parameter in named.values()]
    ep_size, by_rank = mesh.dims.ep_size, gather_objects(here)
    holders: dict[str, list[int]] = {}
    for number, (name, parameter) in enumerate(named.items()):
        ranks = [rank for rank, ready in enumerate(by_rank) if ready[number]]
        if experts_of(parameter) is None:
            holders[name] = ranks
        else:  # of the same experts; slices have to be gathered in any case
            same = [rank for rank in ranks if rank % ep_size == mesh.ep_rank]
            holders[name] = (
                [rank // ep_size for rank in same] if mesh.dims.expert_tensor_parallel_size == 1 else []
            )
    return holders


@torch.no_grad()
def _joined(parameter: nn.Parameter, tensor: Tensor, owner: int, mesh: Mesh) -> Tensor:
    """Gather one tensor of sliced experts at the slice numbered `owner`; all slices of a block call it.

    Other slices get their own tensor back.
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
