"""Between images and token maps, and between stages.

Legend: B images, H x W tokens, C channels, p patch side in pixels.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cut an image into p x p patches and project each (Liu et al. 2021, section 3.1)."""

    def __init__(self, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, h, w) -> (B, ceil(h / p), ceil(w / p), C); other sides are padded with zeros."""
        p = self.patch_size
        padding = (0, -images.shape[3] % p, 0, -images.shape[2] % p)
        x = F.pad(images, padding) if any(padding) else images
        x = self.proj(x.to(self.proj.weight.dtype))
        return self.norm(x.permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halve the map and double the channels: 2 x 2 neighbours side by side, normalised, projected.

    With `post_norm` the norm follows the projection (SwinV2).
    """

    def __init__(self, dim: int, *, post_norm: bool = False) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm = nn.LayerNorm(2 * dim if post_norm else 4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 * C); odd sides are padded with zeros."""
        b, h, w, c = x.shape
        if h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        x = x.view(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.norm(self.reduction(x)) if self.post_norm else self.reduction(self.norm(x))
