"""The attention masks of maps of any size, from a few patterns that are kept.

Legend: a map of sides (H, W) or (D, H, W) in tokens, n tokens a window, S windows of a map, P distinct masks
of its windows: at most 9 of an image, 27 of a clip (8 where padding is seen).
"""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from swin_moe.backbone.windows import WindowGrid

MOST_BYTES = 16 * 2**20  # of a grid; all patterns of large maps take 9.4e6 bytes for windows of 8 x 8 tokens


class PatternMask(NamedTuple):
    """The masks of a map's windows, where windows with the same mask attend together.

    Windows of clips have hundreds of tokens. One mask a window takes S * n^2 numbers, which is 79 MB for the
    first stage of Video Swin-T at 32 x 224 x 224, and attention adds the position bias of each head to it.
    """

    masks: Tensor  # (P, n, n), additive
    counts: tuple[int, ...]  # of each pattern, its windows: they sum to S
    order: Tensor  # (S,) int64: the windows, those of the first pattern first
    place: Tensor  # (S,) int64: of each window, its place in `order`


class WindowMasks:
    """The masks of maps of any size, for the blocks of a stage that cut them by one grid.

    Most windows of a map have the same mask, and maps whose sides differ by whole windows have the same few
    (see `representative`). These patterns are kept, so that images of alternating sizes make no mask
    again; the memory that they take does not depend on the size of a map.

    Args:
        grid: how the maps are cut into windows.
        most_bytes: of the patterns that are kept, and of the indices of windows.
    """

    def __init__(self, grid: WindowGrid, most_bytes: int = MOST_BYTES) -> None:
        self.grid = grid
        self.patterns, self.indices = RecentTensors(most_bytes), RecentTensors(most_bytes)

    @property
    def by_pattern(self) -> bool:
        """Whether the windows with one mask attend together: those of clips."""
        return len(self.grid.window) > 2

    def mask(self, sides: tuple[int, ...], device: torch.device) -> Tensor | PatternMask | None:
        """The mask of a map on the device: (S, n, n) of an image; None if none is needed."""
        if not self.grid.is_masked(*sides):
            return None
        if not self.by_pattern and torch.compiler.is_compiling():
            return self._make(sides, device)
        patterns = self._kept(
            self.patterns, representative(self.grid, *sides), device, self._make
        )  # (P, n, n)
        index = self._kept(self.indices, sides, device, self._index)
        if not self.by_pattern:
            return patterns[index]
        order, place = index.unbind(0)
        return PatternMask(patterns, pattern_counts(self.grid, *sides), order, place)

    def _kept(
        self,
        kept: "RecentTensors",
        sides: tuple[int, ...],
        device: torch.device,
        make: Callable[[tuple[int, ...], torch.device], Tensor],
    ) -> Tensor:
        """What is kept of sides on a device, made if it is not there."""
        if torch.compiler.is_compiling():  # a graph does not depend on what was kept before
            return make(sides, device)
        return kept.get((*sides, device), lambda: make(sides, device))

    def _make(self, sides: tuple[int, ...], device: torch.device) -> Tensor:
        mask = self.grid.mask(*sides)
        assert mask is not None
        return mask.to(device)

    def _index(self, sides: tuple[int, ...], device: torch.device) -> Tensor:
        """The pattern of each window: (S,); of clips, `order` and `place` of a `PatternMask`: (2, S)."""
        index = pattern_index(self.grid, *sides)
        if not self.by_pattern:
            return index.to(device)
        order = index.argsort(stable=True)
        return torch.stack([order, order.argsort()]).to(device)


def representative(grid: WindowGrid, *sides: int) -> tuple[int, ...]:
    """The smallest map whose windows have the masks of those of a map: at most three along each side.

    Along a side, all windows but the last two are alike. The edge of a shift lies in the last one; padding is
    shorter than a window, so that after a shift by half a window it begins in the last but one at most.
    Where padding is seen, the last window alone differs, and maps of any padding have the same masks.
    """
    return tuple(_smallest(grid, side, axis) for axis, side in enumerate(sides))


def pattern_index(grid: WindowGrid, *sides: int) -> Tensor:
    """Of each window of a map, the window of `representative` that has its mask: (S,) int64."""
    index = torch.zeros((), dtype=torch.int64, device="cpu")
    for axis, side in enumerate(sides):
        along = _along(grid, side, axis)
        index = index[..., None] * (along[-1] + 1) + along
    return index.flatten()


def pattern_counts(grid: WindowGrid, *sides: int) -> tuple[int, ...]:
    """The windows of a map that each window of `representative` stands for; from integers alone."""
    along = []
    for axis, side in enumerate(sides):
        repeated = _repeated(grid, side, axis)
        along.append([repeated + 1] + [1] * (grid.num_windows(side, axis) - repeated - 1))
    return tuple(math.prod(counts) for counts in itertools.product(*along))


def _smallest(grid: WindowGrid, side: int, axis: int) -> int:
    """Tokens along a side of `representative`."""
    window, repeated = grid.window[axis], _repeated(grid, side, axis)
    if grid.padding == "fitted" and side <= window:
        return side
    length = grid.num_windows(side, axis) * window if grid.sees_padding else side
    return length - repeated * window


def _along(grid: WindowGrid, side: int, axis: int) -> Tensor:
    """Of each window along a side, the one of `representative` that it is like."""
    windows = torch.arange(grid.num_windows(side, axis), device="cpu")
    return (windows - _repeated(grid, side, axis)).clamp_min(0)


def _repeated(grid: WindowGrid, side: int, axis: int) -> int:
    """Windows along a side that are like the one after them."""
    return max(0, grid.num_windows(side, axis) - (2 if grid.sees_padding else 3))


class RecentTensors:
    """Tensors by key, of bounded memory: the one that was not used for the longest time goes first.

    Threads may share it, as those of a server that runs one model do. They may make a tensor twice.

    Args:
        most_bytes: of all tensors. A single one that is larger is kept until another one comes.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._tensors: dict[Hashable, Tensor] = {}  # the latest used last

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, made if it is not there."""
        if (tensor := self._tensors.pop(key, None)) is not None:
            self._tensors[key] = tensor
            return tensor
        tensor = self._tensors[key] = make()
        while len(keys := list(self._tensors)) > 1 and self.bytes > self._most_bytes:
            self._tensors.pop(keys[0], None)
        return tensor

    @property
    def bytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.nbytes for tensor in self)

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(list(self._tensors.values()))
