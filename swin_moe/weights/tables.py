"""Position bias tables of one window, for another.

Legend: a window of H x W tokens, of clips D x H x W; R offsets, the product of 2 * side - 1 over its sides; h
heads.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from swin_moe.weights.converted import Window


def rows(window: Window) -> int:
    """R of a window: the rows of its table."""
    return math.prod(2 * side - 1 for side in window)


def window_of_rows(count: int, own: Window) -> Window:
    """The window whose table has so many rows: the model's own, or else the likeliest.

    Of images it is the square, or the next smaller one. Of clips it has the model's height and width, and
    otherwise its depth; where neither divides, the answer has other rows.
    """
    if rows(own) == count:
        return own
    if len(own) == 2:
        return (_square_side(count),) * 2
    plane, depth = rows(own[1:]), rows(own[:1])
    if count % plane == 0 and count // plane % 2:
        return (count // plane + 1) // 2, *own[1:]
    return own[0], *(_square_side(count // depth),) * 2


def _square_side(count: int) -> int:
    return (math.isqrt(count) + 1) // 2


def resized_table(table: Tensor, old: Window, new: Window) -> Tensor:
    """A table (R, h) of one window for another: cubically along each axis.

    Each head's table is an image of 2H - 1 x 2W - 1 pixels, which is resized bicubically (Liu et al. 2021,
    section 4.1). Of clips it is 2D - 1 such images. They are resized alike, and each pixel is a line of
    2D - 1 values in time, which is then resized by the same cubic convolution: a longer window stretches the
    bias in time, as a larger one does over the image.
    """
    before, after = ([2 * side - 1 for side in window] for window in (old, new))
    heads = table.shape[1]
    images = table.float().t().reshape(1, -1, *before[-2:])  # of each head, one for each offset in time
    images = F.interpolate(images, size=after[-2:], mode="bicubic", align_corners=False)
    if len(new) == 3 and before[0] != after[0]:
        lines = images.reshape(1, heads, before[0], -1)
        size = after[0], lines.shape[3]
        images = F.interpolate(lines, size=size, mode="bicubic", align_corners=False)
    return images.reshape(heads, -1).t().to(table.dtype)
