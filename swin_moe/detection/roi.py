"""Features of boxes: the level of each, and RoIAlign.

Legend: B images, C channels, L levels, R boxes of an image, s side of the result.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from swin_moe.detection.boxes import area
from swin_moe.detection.roi_gradient import roi_align_gradient
from swin_moe.moe.routers.base import to_fp32


def roi_levels(boxes: Tensor, levels: int, finest: float = 56.0) -> Tensor:
    """The level at which the features of a box are read: (..., 4) -> (...) int64, in 0 .. levels - 1.

    floor(log2(sqrt(area) / finest + 1e-6)), limited to the levels there are (Lin et al. 2017,
    arXiv:1612.03144, equation 1): with 56 and four levels a square of side 112 is the first of level 1, 224
    of level 2, 448 of level 3. Comparisons with powers of two give the same as the logarithm, whose last bit
    depends on the processor.

    Args:
        boxes: in pixels.
        levels: how many there are.
        finest: half of the side of the smallest square of level 1, in pixels.
    """
    scale = area(boxes).clamp_min(0).sqrt() / finest + 1e-6
    level = torch.zeros_like(scale, dtype=torch.int64)
    for coarser in range(1, levels):
        level += scale >= 2.0**coarser
    return level


def roi_align(x: Tensor, rois: Tensor, side: int, scale: float = 1.0) -> Tensor:
    """Means of a map over the bins of boxes (He et al. 2017, arXiv:1703.06870, section 3).

    Tokens' centres lie at half pixels (`aligned`), and a bin has as many sampling points as it has tokens,
    rounded up. A box without an area gives zeros. It is fp32, or fp64 for fp64 maps. Coordinates that are not
    finite count as 0: a bin of them would have any number of points, and a step whose gradients are about to
    be discarded would not end.

    This is the only place that calls torchvision's operator, and only its forward pass. Its backward pass
    adds with atomics on a GPU, in an order that changes from run to run; with
    `torch.use_deterministic_algorithms` it compiles another one, which needs a compiler and much memory. Ours
    is `roi_align_gradient`.

    Args:
        x: (B, C, H, W) the map.
        rois: (N, 5) the number of its image and the box, in pixels.
        side: bins along each side of a box.
        scale: tokens of the map a pixel.

    Returns:
        (N, C, side, side).
    """
    x = to_fp32(x)
    rois = rois.detach().to(x.dtype).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    y: Tensor = _RoIAlign.apply(x, rois, side, scale)
    return y


class _RoIAlign(torch.autograd.Function):
    """torchvision's operator with our backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, rois: Tensor, side: int, scale: float) -> Tensor:
        """The features: (B, C, H, W), (N, 5) -> (N, C, side, side)."""
        from torchvision import ops  # slow to import

        ctx.save_for_backward(rois)
        ctx.shape, ctx.scale = x.shape, scale  # type: ignore[attr-defined]
        y: Tensor = ops.roi_align(x, rois, side, scale, sampling_ratio=0, aligned=True)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the map: (N, C, side, side) -> (B, C, H, W)."""
        (rois,) = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            return roi_align_gradient(gradient, rois, ctx.shape, ctx.scale), None, None, None


class RoIAlign(nn.Module):
    """Features of boxes, each from the level that suits its size.

    All levels are read in every call, also those without a box: all ranks compute the same graph.

    Args:
        strides: of the levels, in pixels, from fine to coarse.
        side: s.
        finest: see `roi_levels`.
    """

    def __init__(self, strides: Sequence[int], side: int, finest: float = 56.0) -> None:
        super().__init__()
        self.strides, self.side, self.finest = tuple(strides), side, finest

    def forward(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """The features of boxes, in their order.

        Args:
            maps: (B, C, H, W) of each level; more maps than strides are not read.
            boxes: (B, R, 4) in pixels; no gradient flows to them. One without an area gets zeros.

        Returns:
            (B * R, C, s, s) fp32, the boxes of an image side by side.
        """
        boxes = to_fp32(boxes.detach())
        levels = roi_levels(boxes, len(self.strides), self.finest).flatten()
        images = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
        rois = torch.cat([images[:, None].to(boxes.dtype), boxes.flatten(0, 1)], dim=1)
        order = levels.argsort(stable=True)
        counts: list[int] = torch.bincount(levels, minlength=len(self.strides)).tolist()
        parts = rois[order].split(counts)
        read = zip(maps, parts, self.strides, strict=False)
        features = torch.cat([roi_align(x, part, self.side, 1 / stride) for x, part, stride in read])
        return features[order.argsort()]

    def extra_repr(self) -> str:
        """As torch's modules print their arguments."""
        return f"strides={self.strides}, side={self.side}"
