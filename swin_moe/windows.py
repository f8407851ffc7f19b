"""Windows of a token map: partition, reverse, and the mask of shifted windows. Pure functions.

Legend: B images, H x W tokens, w window side, S = H/w * W/w windows an image, n = w * w tokens a window,
C channels.
"""

import torch
from torch import Tensor


def partition(x: Tensor, window: int) -> Tensor:
    """Cut a map into windows: (B, H, W, C) -> (B * S, n, C)."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(-1, window * window, c)


def reverse(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Put windows back together: (B * S, n, C) -> (B, H, W, C)."""
    c = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, c).transpose(2, 3)
    return x.reshape(-1, height, width, c)


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """Additive attention mask of the cyclic shift (Liu et al. 2021, section 3.2).

    After the shift a window may hold tokens from opposite edges of the map; they must not see each other.

    Returns:
        (S, n, n) float32: 0 where two tokens of a window are neighbours in the map, -inf where not.
    """
    region = torch.zeros(height, width)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(bands):
        for j, columns in enumerate(bands):
            region[rows, columns] = 3 * i + j
    labels = partition(region[None, :, :, None], window).squeeze(-1)  # (S, n)
    apart = labels[:, :, None] != labels[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, float("-inf"))
