"""A class for every pixel of an image, from its views: complete or in windows, at several ratios, mirrored.

The logits of a view have the size of the image's own pixels only in bands of rows, so that the memory is
bounded whatever that size is. Each value is computed by itself: bands of any height give the same bits.

Legend: B images, h x w pixels of a view, H x W of an image, K classes, n windows of a pass.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from launcher.tasks.segmentation.slide import Window, windows_of
from parallel.ranks.collectives import gather_objects
from swin_moe.finite import finite_images
from swin_moe.heads.resize import resize_band, resize_twice_band
from swin_moe.heads.upernet import SegmentationOutput
from swin_moe.moe.layer import MoEStats

Call = Callable[[Tensor, Tensor], SegmentationOutput]  # of the model: images (B, 3, h, w) and keys (B,)


class SegmentationPrediction(NamedTuple):
    """The class of every pixel, and the statistics of MoE layers over all views."""

    labels: Tensor  # (B, H, W) uint8
    finite: Tensor  # (B,) bool: whether all logits are; those of an image with others mean nothing
    moe: dict[str, MoEStats]


class ViewLogits(NamedTuple):
    """What the model says of one view of images."""

    logits: Tensor  # (B, K, some rows, some columns): resized to `size` first, then to the images' own
    size: tuple[int, int]  # h, w
    mirrored: bool


class SlidingWindows(NamedTuple):
    """How windows slide over a view; sides and strides are of height and width, in pixels."""

    crop: tuple[int, int]
    stride: tuple[int, int]
    at_once: int  # windows of an image in a forward pass


class Views(NamedTuple):
    """Which views of an image are predicted, and how they are joined."""

    slide: SlidingWindows | None  # None: the complete image
    flip: bool  # mirror each view too
    band: int  # rows of the result at once


def predict_views(
    call: Call, images: Sequence[Tensor], keys: Tensor, size: tuple[int, int], views: Views
) -> SegmentationPrediction:
    """The class of every pixel of images of one size.

    One view decides by its logits, several by the mean of their probabilities. Every rank makes as many
    forward passes as the rank with most windows; it calls this together with the others.

    Args:
        call: the model.
        images: (B, 3, h, w) for each ratio, of its own h and w.
        keys: (B,).
        size: H and W.
        views: what is predicted.
    """
    passes = _passes(images, views.slide)
    found: list[ViewLogits] = []
    moe: list[dict[str, MoEStats]] = []
    for view, count in zip(images, passes, strict=True):
        for mirrored in (False, True) if views.flip else (False,):
            seen = view.flip(-1) if mirrored else view
            height, width = seen.shape[2:]
            if views.slide is None:
                output = call(seen, keys)
                logits, statistics = output.logits, [output.moe]
            else:
                logits, statistics = _slide(call, seen, keys, views.slide, count)
            found.append(ViewLogits(logits, (height, width), mirrored))
            moe += statistics
    finite = finite_images(*(view.logits for view in found))
    return SegmentationPrediction(classes_of(found, size, views.band), finite, _joined(moe))


def classes_of(views: Sequence[ViewLogits], size: tuple[int, int], band: int) -> Tensor:
    """The most probable class of every pixel: (B, H, W) uint8, computed in bands of so many rows.

    Args:
        views: one or more.
        size: H and W.
        band: rows of the result at once.
    """
    first = views[0].logits
    labels = torch.empty(len(first), *size, dtype=torch.uint8, device=first.device)
    for top in range(0, size[0], band):
        rows = slice(top, min(top + band, size[0]))
        labels[:, rows] = _scores(views, size, rows).argmax(1).to(torch.uint8)
    return labels


def _scores(views: Sequence[ViewLogits], size: tuple[int, int], rows: slice) -> Tensor:
    """Logits of one view, or summed probabilities of several: (B, K, rows, W) fp32."""
    if len(views) == 1:
        return _band(views[0], size, rows)
    total, *others = (_band(view, size, rows).softmax(1) for view in views)
    for probabilities in others:
        total += probabilities
    return total


def _band(view: ViewLogits, size: tuple[int, int], rows: slice) -> Tensor:
    logits = resize_twice_band(view.logits.float(), view.size, size, rows)
    return logits.flip(-1) if view.mirrored else logits


def _passes(images: Sequence[Tensor], slide: SlidingWindows | None) -> list[int]:
    """The forward passes of each ratio, the same on all ranks."""
    if slide is None:
        return [1] * len(images)
    own = [-(-len(_windows(image, slide)) // slide.at_once) for image in images]
    return [max(counts) for counts in zip(*gather_objects(own), strict=True)]


def _windows(image: Tensor, slide: SlidingWindows) -> Sequence[Window]:
    height, width = image.shape[2:]
    return windows_of(height, width, slide.crop, slide.stride)


def _slide(
    call: Call, images: Tensor, keys: Tensor, slide: SlidingWindows, passes: int
) -> tuple[Tensor, list[dict[str, MoEStats]]]:
    """The mean of the logits of all windows at each pixel: (B, K, h, w) fp32, and the statistics by pass."""
    windows = _windows(images, slide)
    total, count = images.new_zeros(()), images.new_zeros(images.shape[2:])
    moe: list[dict[str, MoEStats]] = []
    for chosen in _groups(windows, slide.at_once, passes):
        # a rank whose images have fewer windows repeats the last one and forgets what the model says
        seen = [images[..., rows, columns] for rows, columns in chosen or windows[-1:]]
        output = call(torch.stack(seen, dim=1).flatten(0, 1), keys.repeat_interleave(len(seen)))
        if not chosen:
            continue
        if not moe:
            total = images.new_zeros(len(images), output.logits.shape[1], *images.shape[2:])
        moe.append({name: one.by_sample(len(seen)) for name, one in output.moe.items()})
        tall, wide = seen[0].shape[2:]
        logits = resize_band(output.logits.float(), (tall, wide), slice(0, tall))
        for window, one in zip(chosen, logits.unflatten(0, (-1, len(seen))).unbind(1), strict=True):
            total[..., window.rows, window.columns] += one
            count[window.rows, window.columns] += 1
    return total / count, moe


def _groups(windows: Sequence[Window], at_once: int, passes: int) -> Iterator[Sequence[Window]]:
    """The windows of each forward pass; none are left for those that other ranks need."""
    for i in range(passes):
        yield windows[i * at_once : (i + 1) * at_once]


def _joined(moe: Sequence[dict[str, MoEStats]]) -> dict[str, MoEStats]:
    return {name: MoEStats.of_passes([one[name] for one in moe]) for name in moe[0]}
