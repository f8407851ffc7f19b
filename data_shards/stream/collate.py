"""How the values of samples become the tensors of a batch.

    rows = collator.rows("image", samples, buffers)    before the samples of a batch are decoded
    rows.put(i, value)                                 by the decode threads, in any order
    rows.tensors()                                     once every row is there

Legend: B samples in a batch, H, W height and width in pixels.
"""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from data_shards.errors import DataError

Value = np.ndarray | int | float  # of a sample, for one collator


class BufferPool:
    """At most `size` reusable buffers; one is reused once no tensor refers to it. Threads may share it.

    On a machine with a GPU the memory is pinned, and torch's caching host allocator is the pool: it also
    waits for copies.
    """

    def __init__(self, size: int, pinned: bool | None) -> None:
        self.size = size
        self.pinned = torch.cuda.is_available() if pinned is None else pinned
        self._buffers: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, shape: Sequence[int], dtype: np.dtype) -> Tensor:
        """An uninitialized tensor that nobody else holds."""
        if self.pinned:
            return torch.empty(tuple(shape), dtype=torch_dtype(dtype), pin_memory=True)
        with self._lock:
            for buffer in self._buffers:
                # A tensor on it, or a view of one, holds a reference; else: the list, `buffer`, the argument.
                if (buffer.shape, buffer.dtype) == (tuple(shape), dtype) and sys.getrefcount(buffer) == 3:
                    return torch.from_numpy(buffer)
            self._buffers = [np.empty(shape, dtype=dtype), *self._buffers[: self.size - 1]]
            return torch.from_numpy(self._buffers[0])


class Rows(Protocol):
    """A tensor of a batch whose samples are being decoded. Each thread writes rows of its own."""

    def put(self, row: int, value: Value | None) -> None:
        """Write the value of a sample; None, of padding, is zeros or nothing. DataError unless it fits."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, once every row was put."""


class Collator(Protocol):
    """How a tensor of a batch is made of one value a sample."""

    def rows(self, name: str, samples: int, buffers: BufferPool) -> Rows:
        """The tensor `name` of a batch of so many samples, without its values."""


@dataclass(frozen=True)
class Fixed:
    """Values of one shape: a tensor (B, *shape), zeros for padding.

    `channels_last` is for images (..., C, H, W): their channels are last in memory, as decoders write them
    and as convolutions prefer them.
    """

    shape: tuple[int, ...]
    dtype: DTypeLike
    channels_last: bool = False

    def rows(self, name: str, samples: int, buffers: BufferPool) -> "FixedRows":
        """A buffer for all rows."""
        shape, dtype = (samples, *self.shape), np.dtype(self.dtype)
        if not self.channels_last:
            return FixedRows(name, buffers.take(shape, dtype))
        *others, channels, height, width = shape
        return FixedRows(name, buffers.take((*others, height, width, channels), dtype).movedim(-1, -3))


class FixedRows:
    """A buffer; each value is written into its row."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self._name, self._tensor, self._array = name, tensor, tensor.numpy()

    def put(self, row: int, value: Value | None) -> None:
        """Write the value of a sample, or zeros."""
        if value is None:
            self._array[row] = 0
            return
        if np.shape(value) != (shape := self._array.shape[1:]):
            raise DataError(f"{self._name}: the value of a sample has shape {np.shape(value)}, not {shape}")
        self._array[row] = cast_to(self._array.dtype, value, self._name)

    def tensors(self) -> dict[str, Tensor]:
        """The buffer: (B, *shape)."""
        return {self._name: self._tensor}


def image_tensor(sides: tuple[int, int], views: int | None = None) -> Fixed:
    """Images (3, H, W) uint8, or `views` of each sample: (views, 3, H, W)."""
    return Fixed((*(() if views is None else (views,)), 3, *sides), np.uint8, channels_last=True)


def cast_to(dtype: np.dtype, value: Value, name: str) -> Value:
    """The value, which may be stored as `dtype`; DataError where it would be another kind of number."""
    if isinstance(value, np.ndarray) and not np.can_cast(value.dtype, dtype, "same_kind"):
        raise DataError(f"{name}: the value of a sample is {value.dtype}, which a {dtype} tensor cannot hold")
    return value


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """The type of torch for one of NumPy."""
    return torch.from_numpy(np.empty(0, dtype=dtype)).dtype
