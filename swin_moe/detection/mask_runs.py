"""Masks as run lengths: their bitmaps, and what a mask head is to predict inside of a box.

Masks stay run lengths until the step that needs them, and become bitmaps a few objects at a time: those of an
image of 1333 x 800 pixels with 100 objects would take 400 MB.

Legend: B images, G places for objects of an image, P boxes of an image, N run lengths, h x w pixels of an
image without padding, n objects, s side of a target.
"""

import torch
from torch import Tensor

from swin_moe.detection.boxes import clip
from swin_moe.detection.roi import roi_align
from swin_moe.detection.targets import Targets

PIXELS_AT_ONCE = 2**24  # of bitmaps, at 12 bytes each; more only if an image has more


def bitmaps(runs: Tensor, offsets: Tensor, height: int, width: int) -> Tensor:
    """The masks of some objects of an image: (n, h, w) fp32 of 0 and 1, on the device of the runs.

    Args:
        runs: (N,) int32 of all masks of the batch, see `Targets`.
        offsets: (n + 1,) int64: object g has the runs offsets[g] .. offsets[g + 1], whose sum is h * w.
        height: h.
        width: w.
    """
    objects = len(offsets) - 1
    first, last = (int(x) for x in offsets[[0, -1]].tolist())
    starts = offsets[:-1].repeat_interleave(offsets.diff(), output_size=last - first)
    place = torch.arange(first, last, device=runs.device) - starts  # of a run in its mask
    ones = (place % 2).float()
    pixels = ones.repeat_interleave(runs[first:last].long(), output_size=objects * height * width)
    return pixels.view(objects, height, width)


@torch.no_grad()
def mask_targets(boxes: Tensor, objects: Tensor, targets: Targets, sizes: Tensor, side: int) -> Tensor:
    """What a mask head is to predict: the mask of each box's object inside of the box, cut at 0.5.

    It is RoIAlign of the bitmap, of pixels in the place of tokens, and at least 0.5 is 1. Boxes are cut at
    the borders of their image before.

    Args:
        boxes: (B, P, 4) in pixels of the canvas.
        objects: (B, P) int64: the object of each box, below 0 for none.
        targets: the objects.
        sizes: (B, 2) height and width of the images without padding, in pixels.
        side: s.

    Returns:
        (B, P, s, s) fp32 of 0 and 1; zeros for boxes without an object.
    """
    rois = clip(boxes.float(), sizes[:, None])
    means = rois.new_zeros((*objects.shape, side, side))
    counts: list[int] = targets.valid.sum(dim=1).tolist()
    for image, (count, (height, width)) in enumerate(zip(counts, sizes.tolist(), strict=True)):
        at_once = max(1, PIXELS_AT_ONCE // (height * width))
        for first in range(0, count, at_once):
            last = min(count, first + at_once)
            maps = bitmaps(targets.mask_runs, targets.mask_offsets[image, first : last + 1], height, width)
            number = objects[image] - first
            means[image] += _means(maps, rois[image], number, side)
    return (means >= 0.5).float()


def _means(maps: Tensor, rois: Tensor, number: Tensor, side: int) -> Tensor:
    """Means of bitmaps over the bins of boxes: (n, h, w), (P, 4), (P,) -> (P, s, s).

    Boxes of other objects are emptied, not left out: their number would have to come from the device.
    """
    here = (number >= 0) & (number < len(maps))
    boxes = torch.where(here[:, None], rois, 0.0)
    batch = torch.where(here, number, 0).to(boxes)
    return roi_align(maps[:, None], torch.cat([batch[:, None], boxes], dim=1), side)[:, 0]
