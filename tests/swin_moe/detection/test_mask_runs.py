"""Run lengths, their bitmaps, and the targets of a mask head, by hand and by plain loops."""

from itertools import groupby

import pytest
import torch
from torch import Tensor

from swin_moe.detection import mask_runs
from swin_moe.detection.mask_runs import bitmaps, mask_targets
from swin_moe.detection.targets import Targets
from tests.swin_moe.detection.test_roi import slow_roi_align


def runs_of(mask: Tensor) -> list[int]:
    """The lengths of the runs of a bitmap (h, w), row by row, zeros first."""
    pixels = [0, *mask.flatten().int().tolist()]  # a zero more, so that the first run is one of zeros
    lengths = [len(list(run)) for _, run in groupby(pixels)]
    return [lengths[0] - 1, *lengths[1:]]


def targets_of(images: list[list[Tensor]]) -> Targets:
    """Targets of the masks of each image, whose boxes do not matter; padding repeats the last offset."""
    most = max(len(masks) for masks in images)
    runs: list[int] = []
    offsets, labels = [], []
    for masks in images:
        row = [len(runs)]
        for mask in masks:
            runs += runs_of(mask)
            row.append(len(runs))
        offsets.append(row + row[-1:] * (most - len(masks)))
        labels.append([0] * len(masks) + [-1] * (most - len(masks)))
    return Targets(
        boxes=torch.zeros(len(images), most, 4),
        labels=torch.tensor(labels, dtype=torch.int64).view(len(images), most),
        mask_runs=torch.tensor(runs, dtype=torch.int32),
        mask_offsets=torch.tensor(offsets, dtype=torch.int64),
    )


def test_bitmaps_by_hand() -> None:
    """3 x 4 pixels: a bar of two rows; one that begins with a one; an empty mask; a full one."""
    runs = torch.tensor([99, 5, 2, 2, 2, 1, 0, 1, 10, 1, 12, 0, 12], dtype=torch.int32)
    found = bitmaps(runs, torch.tensor([1, 6, 10, 11, 13]), 3, 4)
    expected = [
        [[0.0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]],
        [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
        [[0, 0, 0, 0]] * 3,
        [[1, 1, 1, 1]] * 3,
    ]
    assert torch.equal(found, torch.tensor(expected))
    assert bitmaps(runs, torch.tensor([6]), 3, 4).shape == (0, 3, 4)


def random_masks(count: int, height: int, width: int, seed: int) -> list[Tensor]:
    """Blocks of 3 x 3 pixels that belong to the mask or not."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(count, -(-height // 3), -(-width // 3), generator=generator) < 0.5
    whole = blocks.repeat_interleave(3, 1).repeat_interleave(3, 2)
    return list(whole[:, :height, :width])


def test_bitmaps_of_random_masks() -> None:
    masks = random_masks(5, 20, 31, 0)
    targets = targets_of([masks])
    assert torch.equal(
        bitmaps(targets.mask_runs, targets.mask_offsets[0], 20, 31), torch.stack(masks).float()
    )


def test_targets_by_hand() -> None:
    """A box of 8 x 8 pixels, whose left half is in the mask: two of four columns.

    Then three of eight columns: the second bin has one pixel column of each kind, a mean of exactly 0.5.
    """
    masks = [torch.zeros(10, 12, dtype=torch.bool) for _ in range(2)]
    masks[0][:, :5] = True
    masks[1][:, :4] = True
    boxes = torch.tensor([[[1.0, 1, 9, 9]] * 3])
    found = mask_targets(boxes, torch.tensor([[0, 1, -1]]), targets_of([masks]), torch.tensor([[10, 12]]), 4)
    assert torch.equal(found[0, 0], torch.tensor([[1.0, 1, 0, 0]] * 4))
    assert torch.equal(found[0, 1], torch.tensor([[1.0, 1, 0, 0]] * 4))
    assert not found[0, 2].any()


@pytest.mark.parametrize("pixels_at_once", [2**24, 500, 1])
def test_targets_by_loops(pixels_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of other sizes with three, one and no object; boxes that stick out are cut at the image.

    Some means are 0.5 but for rounding: where the loops say less than 1e-4 from it, either is right.
    """
    monkeypatch.setattr(mask_runs, "PIXELS_AT_ONCE", pixels_at_once)
    sizes = [(20, 31), (17, 12), (5, 5)]
    images = [random_masks(n, *size, n) for n, size in zip((3, 1, 0), sizes, strict=True)]
    objects = torch.tensor([[2, 0, 1, -1, 2], [0, -2, 0, -1, 0], [-1] * 5])
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(3, 5, 2, generator=generator) * 12
    boxes = torch.cat([corner - 3, corner + 4 + 20 * torch.rand(3, 5, 2, generator=generator)], dim=-1)
    found = mask_targets(boxes, objects, targets_of(images), torch.tensor(sizes), 6)
    assert found.shape == (3, 5, 6, 6)
    unsure = 0
    for image, (height, width) in enumerate(sizes):
        for row, number in enumerate(objects[image].tolist()):
            x1, y1, x2, y2 = boxes[image, row].tolist()
            box = [max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)]
            means = torch.zeros(6, 6)
            if number >= 0:
                means = slow_roi_align(images[image][number][None].float(), box, 6, 1.0)[0]
            sure = (means - 0.5).abs() > 1e-4
            unsure += int((~sure).sum())
            assert torch.equal(found[image, row][sure], (means >= 0.5).float()[sure])
    assert unsure < 10
    assert 0.2 < found[0].mean() < 0.6


def test_no_object_at_all() -> None:
    targets = targets_of([[], []])
    found = mask_targets(
        torch.zeros(2, 3, 4), torch.full((2, 3), -1), targets, torch.tensor([[9, 9], [8, 7]]), 28
    )
    assert found.shape == (2, 3, 28, 28)
    assert not found.any()
