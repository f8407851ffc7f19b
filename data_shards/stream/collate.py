"""How the values of samples become the tensors of a batch.

    rows = collator.rows("image", samples, buffers)    before the samples of a batch are decoded
    rows.put(i, value)                                 by the decode threads, in any order
    rows.tensors()                                     once every row is there

Legend: B samples in a batch, N rows of all its samples, H, W height and width in pixels.
"""

import math
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
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
            return self.fresh(shape, dtype)
        with self._lock:
            for buffer in self._buffers:
                # A tensor on it, or a view of one, holds a reference; else: the list, `buffer`, the argument.
                if (buffer.shape, buffer.dtype) == (tuple(shape), dtype) and sys.getrefcount(buffer) == 3:
                    return torch.from_numpy(buffer)
            self._buffers = [np.empty(shape, dtype=dtype), *self._buffers[: self.size - 1]]
            return torch.from_numpy(self._buffers[0])

    def fresh(self, shape: Sequence[int], dtype: np.dtype) -> Tensor:
        """An uninitialized tensor of memory that is not kept: for a small one, or one of rare size."""
        return torch.empty(tuple(shape), dtype=torch_dtype(dtype), pin_memory=self.pinned)


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


def ring_size(collators: Iterable[Collator], samples: int, prefetch: int, limit: int) -> int:
    """The buffers of a ring for batches of so many samples: `prefetch`, one in use and one to fill.

    Fewer, but three at least, where they would have more than `limit` bytes. Tensors whose size depends on
    the samples do not count.
    """
    fixed = [one for one in collators if isinstance(one, Fixed)]
    batch = sum(samples * math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in fixed)
    return max(3, min(prefetch + 2, limit // max(batch, 1)))


class FixedRows:
    """A buffer; each value is written into its row."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self._name, self._tensor, self._array = name, tensor, tensor.numpy()

    def put(self, row: int, value: Value | None) -> None:
        """Write the value of a sample, or zeros."""
        if value is None:
            self._array[row] = 0
            return
        found = () if isinstance(value, int | float) else np.shape(value)
        if found != (shape := self._array.shape[1:]):
            raise DataError(f"{self._name}: the value of a sample has shape {found}, not {shape}")
        self._array[row] = cast_to(self._array.dtype, value, self._name)

    def row(self, row: int) -> np.ndarray:
        """The memory of a row, to be written: of `shape`."""
        memory: np.ndarray = self._array[row]
        return memory

    def tensors(self) -> dict[str, Tensor]:
        """The buffer: (B, *shape)."""
        return {self._name: self._tensor}


def image_tensor(sides: tuple[int, int], views: int | None = None) -> Fixed:
    """Images (3, H, W) uint8, or `views` of each sample: (views, 3, H, W)."""
    return Fixed((*(() if views is None else (views,)), 3, *sides), np.uint8, channels_last=True)


Canvas = tuple[int, int] | Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Padded:
    """Images of different sizes, each at the top left of a canvas, which only its own size decides.

    It gives the canvases NAME (B, *leading, H, W), which have the value `fill` beyond their contents, and
    NAME_size (B, 2) int64, the height and width of each content. All samples of a batch must have the same
    canvas; batches of one sample have each its own. Padding is a canvas without content, of size 0 x 0: that
    of the batch, or of a content of 1 x 1 where the batch has no sample.

    `canvas` is (H, W), or a function of the content's height and width, such as `MultipleOf(32)`. `leading`
    is the shape of a value before its height and width: (3,) of images, () of label images.
    """

    canvas: Canvas
    fill: float
    dtype: DTypeLike
    leading: tuple[int, ...] = ()
    channels_last: bool = False

    def rows(self, name: str, samples: int, buffers: BufferPool) -> "PaddedRows":
        """Rows whose first sample decides the canvas."""
        return PaddedRows(self, name, samples, buffers)


@dataclass(frozen=True)
class MultipleOf:
    """The canvas whose sides are those of the content, rounded up to a multiple of `side` pixels."""

    side: int

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the canvas."""
        return -(-height // self.side) * self.side, -(-width // self.side) * self.side


@dataclass(frozen=True)
class SmallestOf:
    """The canvas of least area, of those given as (height, width), that holds the content."""

    canvases: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.canvases or min(map(min, self.canvases)) < 1:
            raise DataError(
                f"canvases {self.canvases} must be heights and widths, for example ((800, 1344),)"
            )

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the canvas."""
        fitting = [canvas for canvas in self.canvases if height <= canvas[0] and width <= canvas[1]]
        if not fitting:
            known = ", ".join(_pixels(*canvas) for canvas in self.canvases)
            raise DataError(f"{_pixels(height, width)} fit no canvas of {known}; add a larger one")
        return min(fitting, key=lambda canvas: canvas[0] * canvas[1])


class PaddedRows:
    """A buffer for canvases, made for the first sample; each thread fills the canvases of its samples."""

    def __init__(self, collator: Padded, name: str, samples: int, buffers: BufferPool) -> None:
        self._collator, self._name, self._buffers = collator, name, buffers
        self._sizes = buffers.fresh((samples, 2), np.dtype(np.int64)).zero_()
        self._canvases: FixedRows | None = None
        self._sides = 0, 0  # of the canvases
        self._lock = threading.Lock()

    def put(self, row: int, value: Value | None) -> None:
        """Write the content of a sample and what surrounds it."""
        if value is None:
            return
        array, leading = np.asarray(value), self._collator.leading
        if array.ndim != len(leading) + 2 or array.shape[:-2] != leading:
            wanted = ", ".join([*map(str, leading), "height", "width"])
            raise DataError(f"{self._name}: the value of a sample has shape {array.shape}, not ({wanted})")
        height, width = array.shape[-2:]
        canvas = self._canvas_of(height, width).row(row)
        canvas[...] = self._collator.fill
        canvas[..., :height, :width] = cast_to(canvas.dtype, array, self._name)
        self._sizes[row, 0], self._sizes[row, 1] = height, width

    def tensors(self) -> dict[str, Tensor]:
        """The canvases, and the sizes of their contents."""
        canvases = self._canvases or self._canvas_of(1, 1)
        for row in torch.nonzero(self._sizes[:, 0] == 0)[:, 0].tolist():
            canvases.row(row)[...] = self._collator.fill
        return {**canvases.tensors(), f"{self._name}_size": self._sizes}

    def _canvas_of(self, height: int, width: int) -> FixedRows:
        """The buffer, if its canvases are those of a content; DataError otherwise."""
        canvas = self._collator.canvas
        sides = canvas if isinstance(canvas, tuple) else canvas(height, width)
        if height > sides[0] or width > sides[1]:
            fix = "resize the images to fit, or take a larger canvas"
            raise DataError(f"{self._name}: {_pixels(height, width)} do not fit {_pixels(*sides)}; {fix}")
        with self._lock:
            if self._canvases is None:
                like = self._collator
                fixed = Fixed((*like.leading, *sides), like.dtype, like.channels_last)
                self._canvases = fixed.rows(self._name, len(self._sizes), self._buffers)
                self._sides = sides
        if sides != self._sides:
            both = " and ".join(_pixels(*each) for each in sorted([sides, self._sides]))
            fix = "use one canvas, or batches of one sample (micro_batch_size, eval_batch_size)"
            raise DataError(f"{self._name}: the samples of a batch have canvases of {both}; {fix}")
        return self._canvases


def _pixels(height: int, width: int) -> str:
    return f"{height} x {width} pixels"


@dataclass(frozen=True)
class Ragged:
    """Any number of rows a sample: boxes, points, the frames of a clip.

    It gives NAME (N, *columns), the rows of all samples in the order of the batch, and NAME_offsets (B + 1,)
    int64: sample i has the rows offsets[i] ... offsets[i + 1] - 1. Padding has none.
    """

    dtype: DTypeLike
    columns: tuple[int, ...] = ()

    def rows(self, name: str, samples: int, buffers: BufferPool) -> "RaggedRows":
        """Samples without rows so far."""
        return RaggedRows(self, name, samples, buffers)


class RaggedRows:
    """The rows of each sample, which are joined at the end."""

    def __init__(self, collator: Ragged, name: str, samples: int, buffers: BufferPool) -> None:
        self._name, self._buffers = name, buffers
        self._columns, self._dtype = collator.columns, np.dtype(collator.dtype)
        self._parts = [np.empty((0, *self._columns), dtype=self._dtype)] * samples

    def put(self, row: int, value: Value | None) -> None:
        """Keep the rows of a sample."""
        if value is None:
            return
        array = np.asarray(value)
        if array.ndim == 0 or array.shape[1:] != self._columns:
            wanted = ", ".join(["any", *map(str, self._columns)])
            raise DataError(f"{self._name}: the value of a sample has shape {array.shape}, not ({wanted})")
        cast_to(self._dtype, array, self._name)
        self._parts[row] = array

    def tensors(self) -> dict[str, Tensor]:
        """The rows of all samples, and where those of each begin."""
        offsets = self._buffers.fresh((len(self._parts) + 1,), np.dtype(np.int64))
        np.cumsum([0, *map(len, self._parts)], out=offsets.numpy())
        rows = self._buffers.fresh((int(offsets[-1]), *self._columns), self._dtype)
        np.concatenate(self._parts, out=rows.numpy(), casting="same_kind")
        return {self._name: rows, f"{self._name}_offsets": offsets}


def cast_to(dtype: np.dtype, value: Value, name: str) -> Value:
    """The value, which may be stored as `dtype`; DataError where it would be another kind of number."""
    if isinstance(value, np.ndarray) and not np.can_cast(value.dtype, dtype, "same_kind"):
        raise DataError(f"{name}: the value of a sample is {value.dtype}, which a {dtype} tensor cannot hold")
    return value


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """The type of torch for one of NumPy."""
    return torch.from_numpy(np.empty(0, dtype=dtype)).dtype
