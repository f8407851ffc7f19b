"""Windows of a token map: cutting a map of any size into them, their attention mask, and joining them again.

Legend: B images or clips, C channels, S windows of an image or clip, n tokens a window.
Maps and windows have two axes or three: (H, W) of an image, (D, H, W) of a clip, whose first axis is time.
`sides` are the tokens of a map along each axis, `window` those of a window.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe.config import WindowPadding


def partition(x: Tensor, window: tuple[int, ...]) -> Tensor:
    """Cut a map into windows: (B, *sides, C) -> (B * S, n, C); a window's sides divide those of the map."""
    axes, shape = len(window), [x.shape[0]]  # not len(x), which a compiled graph would fix
    for side, length in zip(x.shape[1:-1], window, strict=True):
        shape += [side // length, length]
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
    return x.view(*shape, x.shape[-1]).permute(order).reshape(-1, math.prod(window), x.shape[-1])


def reverse(windows: Tensor, window: tuple[int, ...], *sides: int) -> Tensor:
    """Put windows back together: (B * S, n, C) -> (B, *sides, C)."""
    axes, c = len(window), windows.shape[-1]
    numbers = [side // length for side, length in zip(sides, window, strict=True)]
    order = [0, *(axis for i in range(axes) for axis in (1 + i, 1 + axes + i)), 2 * axes + 1]
    return windows.view(-1, *numbers, *window, c).permute(order).reshape(-1, *sides, c)


@dataclass(frozen=True, kw_only=True)
class WindowGrid:
    """How the blocks of a stage see a map: windows of `window` tokens, shifted or not.

    A map that is no multiple of the window is padded at the end of each axis. `cyclic` shifts roll the map
    (Liu et al. 2021, section 3.2); the others (Swin-MLP, which cannot mask) pad with zeros all around.
    The axes are independent: a side that is a single window is not shifted, whatever the other ones.

    `padding` is `ModelConfig.window_padding`. Where it is visible, the zeros that pad a map are tokens like
    all others, which attention sees, and every side is shifted: the rule of the models that were released for
    detection and segmentation. Where it is fitted, attention sees them too, but a side that is not longer
    than the window is one window of that length and is not shifted: the rule of the models that were released
    for clips (Liu et al. 2022, "Video Swin Transformer", section 3.2, and its code).
    """

    window: tuple[int, ...]
    shifted: bool
    cyclic: bool = True
    padding: WindowPadding = "hidden"  # of cyclic shifts

    @property
    def sees_padding(self) -> bool:
        """Whether attention sees the zeros that pad a map."""
        return self.padding != "hidden"

    def window_of(self, *sides: int) -> tuple[int, ...]:
        """The window of a map: `window`, unless it is fitted to the map's sides."""
        if self.padding != "fitted":
            return self.window
        return tuple(self._length(side, axis) for axis, side in enumerate(sides))

    def shift(self, side: int, axis: int) -> int:
        """Tokens by which a map whose side along `axis` is so long is shifted."""
        window = self.window[axis]
        return window // 2 if self.shifted and (self.padding == "visible" or side > window) else 0

    def num_windows(self, side: int, axis: int) -> int:
        """Windows along a side of so many tokens."""
        return (side + sum(self._padding(side, axis))) // self._length(side, axis)

    def cut(self, x: Tensor) -> Tensor:
        """Pad, shift and cut a map: (B, *sides, C) -> (B * S, n, C)."""
        sides = x.shape[1:-1]
        paddings = [self._padding(side, axis) for axis, side in enumerate(sides)]
        if any(map(any, paddings)):
            x = F.pad(x, (0, 0, *(zeros for pair in reversed(paddings) for zeros in pair)))
        if self.cyclic:
            x = self._roll(x, -1)
        return partition(x, self.window_of(*sides))

    def join(self, windows: Tensor, *sides: int) -> Tensor:
        """The inverse of `cut`: (B * S, n, C) -> (B, *sides, C)."""
        paddings = [self._padding(side, axis) for axis, side in enumerate(sides)]
        padded = [side + sum(pair) for side, pair in zip(sides, paddings, strict=True)]
        x = reverse(windows, self.window_of(*sides), *padded)
        if self.cyclic:
            x = self._roll(x, 1)
        if not any(map(any, paddings)):
            return x
        inside = (slice(pair[0], pair[0] + side) for side, pair in zip(sides, paddings, strict=True))
        return x[(slice(None), *inside)]

    def is_masked(self, *sides: int) -> bool:
        """Whether a window of the map needs a mask; from integers alone, which a compiler can follow."""
        return self.cyclic and not all(self._is_whole(side, axis) for axis, side in enumerate(sides))

    def mask(self, *sides: int) -> Tensor | None:
        """The additive mask of attention (S, n, n): -inf between tokens that do not see each other.

        After a cyclic shift a window may hold tokens of opposite edges, of the padded map. Padding attends to
        padding alone, unless it is seen. None where no window needs a mask.
        """
        if not self.is_masked(*sides):
            return None
        labels = torch.zeros((), dtype=torch.int64, device="cpu")
        padding = torch.zeros((), dtype=torch.bool, device="cpu")
        for axis, side in enumerate(sides):
            along = self._labels(side, axis)
            labels, padding = 2 * labels[..., None] + along, padding[..., None] | (along == 2)
        labels = labels.masked_fill(padding, -1)
        tokens = partition(labels[None, ..., None], self.window_of(*sides)).squeeze(-1)  # (S, n)
        apart = tokens[:, :, None] != tokens[:, None, :]
        return torch.zeros(apart.shape, device="cpu").masked_fill(apart, float("-inf"))

    def _is_whole(self, side: int, axis: int) -> bool:
        """Whether a side is not shifted, and has no padding that must be hidden."""
        return self.shift(side, axis) == 0 and (self.sees_padding or self._padding(side, axis) == (0, 0))

    def _labels(self, side: int, axis: int) -> Tensor:
        """Of each place along an axis of the shifted map: 0 in order, 1 rolled round the edge, 2 hidden."""
        padded = side + sum(self._padding(side, axis))
        source = torch.arange(padded, device="cpu") + self.shift(padded, axis)
        rolled = (source >= padded).long()
        return rolled if self.sees_padding else torch.where(source % padded >= side, 2, rolled)

    def _length(self, side: int, axis: int) -> int:
        """Tokens of a window along an axis."""
        window = self.window[axis]
        return min(side, window) if self.padding == "fitted" else window

    def _padding(self, side: int, axis: int) -> tuple[int, int]:
        """Tokens added before and after a side."""
        window, shift, before = self._length(side, axis), self.shift(side, axis), 0
        if not self.cyclic and shift:
            before = window - shift
        return before, -(side + before) % window

    def _roll(self, x: Tensor, sign: int) -> Tensor:
        shifts = tuple(sign * self.shift(side, axis) for axis, side in enumerate(x.shape[1:-1]))
        return x.roll(shifts, dims=tuple(range(1, x.dim() - 1))) if any(shifts) else x
