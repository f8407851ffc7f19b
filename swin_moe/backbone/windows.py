"""Windows of a token map: cutting a map of any size into them, their attention mask, and joining them again.

Legend: B images, H x W tokens, h x w tokens a window, n = h * w, S windows an image, C channels.
Axis 0 is the height, axis 1 the width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut a map into windows (h, w): (B, H, W, C) -> (B * S, n, C); h divides H and w divides W."""
    b, height, width, c = x.shape
    h, w = window
    x = x.view(b, height // h, h, width // w, w, c).transpose(2, 3)
    return x.reshape(-1, h * w, c)


def reverse(windows: Tensor, window: tuple[int, int], height: int, width: int) -> Tensor:
    """Put windows (h, w) back together: (B * S, n, C) -> (B, H, W, C)."""
    h, w = window
    c = windows.shape[-1]
    x = windows.view(-1, height // h, width // w, h, w, c).transpose(2, 3)
    return x.reshape(-1, height, width, c)


@dataclass(frozen=True, kw_only=True)
class WindowGrid:
    """How the blocks of a stage see a map: windows of `window` = (h, w) tokens, shifted or not.

    A map that is no multiple of the window is padded at the bottom and the right. `cyclic` shifts roll the
    map (Liu et al. 2021, section 3.2); the others (Swin-MLP, which cannot mask) pad with zeros all around.
    The axes are independent: a side that is a single window is not shifted, whatever the other one.

    With `sees_padding` the zeros that pad a map are tokens like all others, which attention sees, and every
    side is shifted. This is the rule of the models that were released for detection and segmentation.
    """

    window: tuple[int, int]
    shifted: bool
    cyclic: bool = True
    sees_padding: bool = False  # of cyclic shifts

    def shift(self, side: int, axis: int) -> int:
        """Tokens by which a map whose side along `axis` is so long is shifted."""
        window = self.window[axis]
        return window // 2 if self.shifted and (self.sees_padding or side > window) else 0

    def num_windows(self, side: int, axis: int) -> int:
        """Windows along a side of so many tokens."""
        return (side + sum(self._padding(side, axis))) // self.window[axis]

    def cut(self, x: Tensor) -> Tensor:
        """Pad, shift and cut a map: (B, H, W, C) -> (B * S, n, C)."""
        (top, bottom), (left, right) = self._padding(x.shape[1], 0), self._padding(x.shape[2], 1)
        if top or bottom or left or right:
            x = F.pad(x, (0, 0, left, right, top, bottom))
        if self.cyclic:
            x = self._roll(x, x.shape[1], x.shape[2], -1)
        return partition(x, self.window)

    def join(self, windows: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `cut`: (B * S, n, C) -> (B, height, width, C)."""
        (top, bottom), (left, right) = self._padding(height, 0), self._padding(width, 1)
        tall, wide = top + height + bottom, left + width + right
        x = reverse(windows, self.window, tall, wide)
        if self.cyclic:
            x = self._roll(x, tall, wide, 1)
        return x[:, top : top + height, left : left + width]

    def is_masked(self, height: int, width: int) -> bool:
        """Whether a window of the map needs a mask; from integers alone, which a compiler can follow."""
        return self.cyclic and not (self._is_whole(height, 0) and self._is_whole(width, 1))

    def mask(self, height: int, width: int) -> Tensor | None:
        """The additive mask of attention (S, n, n): -inf between tokens that do not see each other.

        After a cyclic shift a window may hold tokens of opposite edges, of the padded map. Padding attends to
        padding alone, unless it is seen. None where no window needs a mask.
        """
        if not self.is_masked(height, width):
            return None
        rows, columns = self._labels(height, 0), self._labels(width, 1)
        padding = (rows == 2)[:, None] | (columns == 2)
        labels = (2 * rows[:, None] + columns).masked_fill(padding, 9)
        tokens = partition(labels[None, :, :, None], self.window).squeeze(-1)  # (S, n)
        apart = tokens[:, :, None] != tokens[:, None, :]
        return torch.zeros(apart.shape, device="cpu").masked_fill(apart, float("-inf"))

    def _is_whole(self, side: int, axis: int) -> bool:
        """Whether a side is not shifted, and has no padding that must be hidden."""
        return self.shift(side, axis) == 0 and (self.sees_padding or self._padding(side, axis) == (0, 0))

    def _labels(self, side: int, axis: int) -> Tensor:
        """Of each row (or column) of the shifted map: 0 in its place, 1 rolled round the edge, 2 hidden."""
        padded = side + sum(self._padding(side, axis))
        source = torch.arange(padded, device="cpu") + self.shift(padded, axis)
        rolled = (source >= padded).long()
        return rolled if self.sees_padding else torch.where(source % padded >= side, 2, rolled)

    def _padding(self, side: int, axis: int) -> tuple[int, int]:
        """Tokens added before and after a side."""
        window, shift, before = self.window[axis], self.shift(side, axis), 0
        if not self.cyclic and shift:
            before = window - shift
        return before, -(side + before) % window

    def _roll(self, x: Tensor, height: int, width: int, sign: int) -> Tensor:
        shifts = (sign * self.shift(height, 0), sign * self.shift(width, 1))
        return x.roll(shifts, dims=(1, 2)) if any(shifts) else x
