"""State of a task beside its model: queues, centres, statistics; equal on all ranks, part of the checkpoint.

    state = PersistentState({"queue": torch.randn(128, 4096), "next": torch.zeros((), dtype=torch.int64)})
    state["queue"][:, :n] = keys             in place, on every rank alike

The tensors lie outside the engine's module, so that no cast rounds them. What differs between ranks does not
belong here: a checkpoint loads on any number of ranks, so keep a row for each position of the global batch.
State that belongs to the weights (running statistics) is a persistent buffer of a module instead; DeepSpeed
does not cast buffers, and a checkpoint keeps them too.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from parallel.digest import tensor_digest
from parallel.ranks.collectives import gather_objects
from parallel.zero.errors import StateError

DTYPES = (torch.float32, torch.int64)  # of a checkpoint
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", re.ASCII)


class PersistentState(Mapping[str, Tensor]):
    """Named fp32 and int64 tensors of a task, changed in place alone.

    Raises:
        StateError: a tensor of another dtype, or a name that is not made of letters, digits, `_` and `.`.

    Args:
        tensors: on their device, with their initial values, the same on every rank.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not _NAME.fullmatch(name):
                raise StateError(f"state {name!r}: a name consists of letters, digits, _ and .")
            if tensor.dtype not in DTYPES:
                raise StateError(
                    f"state {name} is {tensor.dtype}: a checkpoint keeps {' and '.join(map(str, DTYPES))}"
                )
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def check_same_on_ranks(tensors: Mapping[str, Tensor]) -> None:
    """Compare the digests of tensors that every rank holds; all ranks call it together.

    Raises:
        StateError: on all ranks; a tensor differs between them.
    """
    by_rank = gather_objects({name: tensor_digest(tensor) for name, tensor in tensors.items()})
    wrong = [name for name in tensors if len({digests.get(name) for digests in by_rank}) > 1]
    if wrong:
        ranks = [
            rank for rank, digests in enumerate(by_rank) if digests.get(wrong[0]) != by_rank[0][wrong[0]]
        ]
        raise StateError(
            f"{', '.join(wrong)}: every rank must hold the same values; ranks {ranks} differ from rank 0 in "
            f"{wrong[0]}: update it from values of all ranks"
        )
