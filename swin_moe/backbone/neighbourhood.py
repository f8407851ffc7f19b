"""The k x k tokens around each token of a map, as views of a padded map.

Legend: B images, H x W tokens of a map, h x w windows of it, k side of a window in tokens. Images are the
last dim, so that the rows of small maps are long too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """The windows of a map: one around every `stride`-th token, as those of a convolution.

    `padding` None keeps a token in the centre of its window. Tokens outside of the map stay in the softmax,
    with a similarity of -100.
    """

    kernel_size: int
    stride: int = 1
    dilation: int = 1
    padding: int | None = None

    @property
    def margin(self) -> int:
        """Tokens that are added at each edge."""
        return self.dilation * (self.kernel_size // 2) if self.padding is None else self.padding

    @property
    def span(self) -> int:
        """Tokens from the first to the last of a window along a side."""
        return self.dilation * (self.kernel_size - 1) + 1

    def outputs(self, side: int) -> int:
        """Windows along a side of so many tokens."""
        return (side + 2 * self.margin - self.span) // self.stride + 1

    def pad(self, x: Tensor) -> Tensor:
        """Zeros around maps: (..., H, W, B) -> (..., H + 2 margin, W + 2 margin, B)."""
        margin = self.margin
        return F.pad(x, (0, 0, margin, margin, margin, margin)) if margin else x

    def crop(self, x: Tensor) -> Tensor:
        """The inverse of `pad`."""
        margin, (height, width) = self.margin, x.shape[-3:-1]
        return x[..., margin : height - margin, margin : width - margin, :]

    def windows(self, padded: Tensor) -> Tensor:
        """A view of a padded map by offset: (..., H, W, B) -> (k, k, ..., h, w, B)."""
        view = padded.unfold(-3, self.span, self.stride).unfold(-3, self.span, self.stride)
        return view[..., :: self.dilation, :: self.dilation].movedim((-2, -1), (0, 1))

    def shifted(self, padded: Tensor, sides: tuple[int, int]) -> Iterator[Tensor]:
        """Views of a padded map for h x w windows, offset by offset: k * k times (..., h, w, B)."""
        (height, width), s = sides, self.stride
        for row in range(0, self.span, self.dilation):
            for column in range(0, self.span, self.dilation):
                yield padded[
                    ..., row : row + s * (height - 1) + 1 : s, column : column + s * (width - 1) + 1 : s, :
                ]

    def inside(self, sides: tuple[int, int], device: torch.device) -> Tensor:
        """Whether the token at an offset of a window is one of an H x W map: (k, k, h, w) bool."""
        rows, columns = (self._inside(side, device) for side in sides)  # (k, h), (k, w)
        return rows[:, None, :, None] & columns[None, :, None, :]

    def _inside(self, side: int, device: torch.device) -> Tensor:
        offsets = torch.arange(self.kernel_size, device=device) * self.dilation - self.margin
        places = offsets[:, None] + torch.arange(self.outputs(side), device=device) * self.stride
        return (places >= 0) & (places < side)
