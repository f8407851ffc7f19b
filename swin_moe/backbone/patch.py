"""Between images and token maps, and between stages.

Legend: B images of h x w pixels or clips of d frames of them, (H, W) or (D, H, W) sides of a map in tokens,
C channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cut images or clips into patches and project each (Liu et al. 2021, section 3.1).

    Args:
        patch: sides of a patch, (height, width) in pixels; of clips (frames, height, width).
        in_chans: channels of an image.
        dim: C.
    """

    def __init__(self, patch: tuple[int, ...], in_chans: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        conv = nn.Conv2d if len(patch) == 2 else nn.Conv3d
        self.proj = conv(in_chans, dim, kernel_size=patch, stride=patch)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed (B, in_chans, h, w) or (B, in_chans, d, h, w): (B, *sides, C).

        A side that is no multiple of the patch's is filled up with zeros at its end.
        """
        pairs = zip(images.shape[2:], self.patch, strict=True)
        padding = [zeros for side, length in pairs for zeros in (-side % length, 0)][::-1]
        x = F.pad(images, padding) if any(padding) else images
        x = self.proj(x.to(self.proj.weight.dtype))
        return self.norm(x.movedim(1, -1))


class PatchMerging(nn.Module):
    """Halve the map and double the channels: 2 x 2 neighbours side by side, normalised, projected.

    The map of a clip keeps its length in time (Video Swin Transformer, section 3.1).
    With `post_norm` the norm follows the projection (SwinV2).
    """

    def __init__(self, dim: int, *, post_norm: bool = False) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm = nn.LayerNorm(2 * dim if post_norm else 4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., H, W, C) -> (..., ceil(H / 2), ceil(W / 2), 2 * C); odd sides are padded with zeros."""
        *above, h, w, c = x.shape
        if h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        x = x.view(*above, (h + 1) // 2, 2, (w + 1) // 2, 2, c).movedim(-4, -2).flatten(-3)
        return self.norm(self.reduction(x)) if self.post_norm else self.reduction(self.norm(x))
