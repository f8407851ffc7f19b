"""The attention masks of maps of any size, from a few patterns that are kept.

Legend: H x W tokens, n tokens a window, S windows of a map, P <= 9 distinct masks of its windows.
"""

from collections.abc import Callable, Hashable, Iterator

import torch
from torch import Tensor

from swin_moe.backbone.windows import WindowGrid

MOST_BYTES = 16 * 2**20  # of a grid; all patterns of large maps take 9.4e6 bytes for windows of 8 x 8 tokens


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

    def mask(self, height: int, width: int, device: torch.device) -> Tensor | None:
        """The mask (S, n, n) of a map of height x width tokens, on the device; None if none is needed."""
        if not self.grid.is_masked(height, width):
            return None
        if torch.compiler.is_compiling():  # a graph does not depend on what was kept before
            return self._make(height, width, device)
        smallest = representative(self.grid, height, width)
        patterns = self.patterns.get((*smallest, device), lambda: self._make(*smallest, device))  # (P, n, n)
        key = height, width, device
        return patterns[self.indices.get(key, lambda: pattern_index(self.grid, height, width).to(device))]

    def _make(self, height: int, width: int, device: torch.device) -> Tensor:
        mask = self.grid.mask(height, width)
        assert mask is not None
        return mask.to(device)


def representative(grid: WindowGrid, height: int, width: int) -> tuple[int, int]:
    """The smallest map whose windows have the masks of those of a map: at most three along each side.

    Along a side, all windows but the last two are alike. The edge of a shift lies in the last one; padding is
    shorter than a window, so that after a shift by half a window it begins in the last but one at most.
    Where padding is seen, the last window alone differs, and maps of any padding have the same masks.
    """
    return _smallest(grid, height, 0), _smallest(grid, width, 1)


def pattern_index(grid: WindowGrid, height: int, width: int) -> Tensor:
    """Of each window of a map, the window of `representative` that has its mask: (S,) int64."""
    rows, columns = _along(grid, height, 0), _along(grid, width, 1)
    return (rows[:, None] * (columns[-1] + 1) + columns).flatten()


def _smallest(grid: WindowGrid, side: int, axis: int) -> int:
    """Tokens along a side of `representative`."""
    window = grid.window[axis]
    length = grid.num_windows(side, axis) * window if grid.sees_padding else side
    return length - _repeated(grid, side, axis) * window


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
