"""Windows of a token map: how a map of any size is cut into them, who may see whom, and the way back.

Legend: B images, H x W tokens, w window side, S windows an image, n = w * w tokens a window, C channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def partition(x: Tensor, window: int) -> Tensor:
    """Cut a map into windows: (B, H, W, C) -> (B * S, n, C); w divides H and W."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(-1, window * window, c)


def reverse(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Put windows back together: (B * S, n, C) -> (B, H, W, C)."""
    c = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, c).transpose(2, 3)
    return x.reshape(-1, height, width, c)


@dataclass(frozen=True, kw_only=True)
class WindowGrid:
    """How the blocks of a stage see a map: windows of `window` tokens a side, shifted or not.

    A map that is no multiple of the window is padded at the bottom and the right. `cyclic` shifts roll the
    map (Liu et al. 2021, section 3.2); the others (Swin-MLP, which cannot mask) pad with zeros all around.
    A side that is a single window is not shifted.
    """

    window: int
    shifted: bool
    cyclic: bool = True

    def shift(self, side: int) -> int:
        """Tokens by which a side of the map is shifted."""
        return self.window // 2 if self.shifted and side > self.window else 0

    def cut(self, x: Tensor) -> Tensor:
        """Pad, shift and cut a map: (B, H, W, C) -> (B * S, n, C)."""
        (top, bottom), (left, right) = (self._padding(side) for side in x.shape[1:3])
        if top or bottom or left or right:
            x = F.pad(x, (0, 0, left, right, top, bottom))
        if self.cyclic:
            x = self._roll(x, x.shape[1], x.shape[2], -1)
        return partition(x, self.window)

    def join(self, windows: Tensor, height: int, width: int) -> Tensor:
        """The inverse of `cut`: (B * S, n, C) -> (B, height, width, C)."""
        (top, bottom), (left, right) = self._padding(height), self._padding(width)
        tall, wide = top + height + bottom, left + width + right
        x = reverse(windows, self.window, tall, wide)
        if self.cyclic:
            x = self._roll(x, tall, wide, 1)
        return x[:, top : top + height, left : left + width]

    def mask(self, height: int, width: int) -> Tensor | None:
        """Who may see whom: (S, n, n) additive, -inf between tokens that are no neighbours in the map.

        After a cyclic shift a window may hold tokens of opposite edges, and padding is nobody's neighbour but
        its own. None where every window is whole.
        """
        if not self.cyclic or (self._is_whole(height) and self._is_whole(width)):
            return None
        rows, columns = self._labels(height), self._labels(width)
        padding = (rows == 2)[:, None] | (columns == 2)
        labels = (2 * rows[:, None] + columns).masked_fill(padding, 9)
        tokens = partition(labels[None, :, :, None], self.window).squeeze(-1)  # (S, n)
        apart = tokens[:, :, None] != tokens[:, None, :]
        return torch.zeros(apart.shape, device="cpu").masked_fill(apart, float("-inf"))

    def _is_whole(self, side: int) -> bool:
        """Whether a side is neither shifted nor padded; from integers alone, which a compiler can follow."""
        return self.shift(side) == 0 and self._padding(side) == (0, 0)

    def _labels(self, side: int) -> Tensor:
        """Of each row (or column) of the shifted map: 0 in its place, 1 rolled round the edge, 2 padding."""
        padded = side + sum(self._padding(side))
        source = torch.arange(padded, device="cpu") + self.shift(padded)
        return torch.where(source % padded >= side, 2, (source >= padded).long())

    def _padding(self, side: int) -> tuple[int, int]:
        """Tokens added before and after a side."""
        before = 0
        if not self.cyclic and self.shift(side):
            before = self.window - self.shift(side)
        return before, -(side + before) % self.window

    def _roll(self, x: Tensor, height: int, width: int, sign: int) -> Tensor:
        shifts = (sign * self.shift(height), sign * self.shift(width))
        return x.roll(shifts, dims=(1, 2)) if any(shifts) else x
