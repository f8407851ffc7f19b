"""The figures that a segmentation model is compared with: mIoU by hand, and what each prediction sees."""

import pytest
import torch

from benchmarks.segmentation_floors import fit_linear, mean_iou, patches, reduced_truth
from data_shards.image.annotations import VOID


def test_mean_iou_by_hand() -> None:
    """Classes 0 and 1: 4 pixels right, then 1 of class 0 and 3 of class 1 all called 1: 4/5 and 3/4."""
    image = torch.zeros(3, 1, 5)
    val = [(image, torch.tensor([[0, 0, 0, 0, VOID]])), (image, torch.tensor([[0, 1, 1, 1, VOID]]))]
    predictions = iter([torch.tensor([[0, 0, 0, 0, 1]]), torch.tensor([[1, 1, 1, 1, 0]])])
    assert mean_iou(lambda *_: next(predictions), val, 3) == pytest.approx(0.775)
    assert mean_iou(lambda _, mask: mask, val, 3) == 1.0


def test_a_patch_is_the_colours_around_a_pixel() -> None:
    image = torch.arange(12.0).view(1, 3, 4).expand(3, 3, 4)
    rows = patches(image, 3)
    assert rows.shape == (12, 28)
    assert (rows[5, :9] + 0.5).tolist() == [0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 8.0, 9.0, 10.0]  # around value 5
    assert (rows[0, :9] + 0.5).tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 4.0, 4.0, 5.0]  # the border repeats
    assert rows[5, 27] == 1


def test_a_linear_classifier_learns_colours() -> None:
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 2, (20, 20), generator=generator)
    image = torch.stack([mask * 0.8, 1.0 - mask, torch.rand(20, 20, generator=generator)])
    mask[0] = VOID
    weights = fit_linear([(image, mask)], 1, 2, 40)
    assert mean_iou(lambda i, m: (patches(i, 1) @ weights).argmax(1).view_as(m), [(image, mask)], 2) == 1.0


def test_the_truth_at_a_quarter_loses_what_is_small() -> None:
    mask = torch.zeros(16, 16, dtype=torch.int64)
    mask[:, 8:] = 1
    assert torch.equal(reduced_truth(mask, 2, 4), mask)
    mask[2, 2] = 1
    assert reduced_truth(mask, 2, 4)[2, 2] == 0
    assert torch.equal(reduced_truth(mask, 2, 1), mask)
