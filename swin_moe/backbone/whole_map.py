"""A map that is not cut: for mixers that see the neighbours of each token instead of windows.

Legend: B images, H x W tokens, C channels.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from swin_moe.backbone.windows import WindowGrid


@dataclass(frozen=True, kw_only=True)
class WholeMap(WindowGrid):
    """Blocks whose mixer gets the map as it is: no windows, shifts, padding or masks."""

    window: tuple[int, int] = (1, 1)
    shifted: bool = False

    def cut(self, x: Tensor) -> Tensor:
        """The map (B, H, W, C)."""
        return x

    def join(self, windows: Tensor, *sides: int) -> Tensor:
        """The map (B, H, W, C)."""
        return windows


class MapMixer(nn.Module):
    """A layer on maps (B, C, H, W) as the mixer of a block.

    Args:
        layer: that mixes tokens.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        assert mask is None, "a map that is not cut needs no mask"
        y: Tensor = self.layer(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)
