"""The loss of segmentation: by hand, against torch's loss of images, and in micro-batches."""

import math

import pytest
import torch
import torch.nn.functional as F

from swin_moe.heads.segmentation import segmentation_loss
from swin_moe.heads.upernet_config import LossOver
from tests.models import randn

KINDS: list[LossOver] = ["all", "valid"]


def test_divisors_by_hand() -> None:
    """Logits (ln 3, 0): a pixel of class 0 costs ln 4/3, one of class 1 costs ln 4. Images have 4 pixels."""
    logits = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1).expand(3, -1, -1, -1)
    labels = torch.tensor(
        [[[0, 1], [255, 255]], [[1, 1], [1, 1]], [[255, 255], [255, 255]]], dtype=torch.uint8
    )
    first, second, low, high = labels[:1], labels[1:2], math.log(4 / 3), math.log(4)
    assert segmentation_loss(logits[:1], first, "all").item() == pytest.approx((low + high) / 4)
    assert segmentation_loss(logits[:1], first, "valid").item() == pytest.approx((low + high) / 2)
    assert segmentation_loss(logits[:1], second, "all").item() == pytest.approx(high)
    # a mean over images: of the first (low + high) / 4 or / 2, of the second high, of the third 0
    assert segmentation_loss(logits, labels, "all").item() == pytest.approx(((low + high) / 4 + high) / 3)
    assert segmentation_loss(logits, labels, "valid").item() == pytest.approx(((low + high) / 2 + high) / 3)
    assert segmentation_loss(logits, labels).item() == segmentation_loss(logits, labels, "all").item()


@pytest.mark.parametrize("loss_over", KINDS)
def test_equals_torchs_loss_of_images(loss_over: LossOver) -> None:
    """`F.interpolate`, then `F.cross_entropy` of each image, which divides by its valid pixels."""
    logits = randn(3, 5, 4, 6).requires_grad_()
    labels = torch.randint(0, 5, (3, 15, 21), generator=torch.Generator().manual_seed(3))
    labels[0, :7], labels[1, :, 4:] = 255, 255
    large = F.interpolate(logits, (15, 21), mode="bilinear", align_corners=False)
    losses = [F.cross_entropy(x[None], y[None], ignore_index=255) for x, y in zip(large, labels, strict=True)]
    shares = [(y != 255).float().mean() if loss_over == "all" else 1.0 for y in labels]
    expected = sum(loss * share for loss, share in zip(losses, shares, strict=True)) / 3
    got = segmentation_loss(logits, labels.byte(), loss_over)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss_over", KINDS)
@pytest.mark.parametrize("micro", [1, 2])
def test_a_global_batch_is_the_mean_of_its_micro_batches(loss_over: LossOver, micro: int) -> None:
    """With another number of valid pixels in each image, of which one has none."""
    logits = randn(4, 3, 2, 2).requires_grad_()
    labels = torch.arange(4 * 8 * 8).view(4, 8, 8).remainder(3)
    labels[0, :2], labels[1, :, 1:], labels[3] = 255, 255, 255
    whole = segmentation_loss(logits, labels, loss_over)
    parts = zip(logits.split(micro), labels.split(micro), strict=True)
    together = torch.stack([segmentation_loss(x, y, loss_over) for x, y in parts]).mean()
    torch.testing.assert_close(together, whole, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (together, whole)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)
    assert gradients[0][3].abs().max() == 0


def test_half_precision_logits_give_an_fp32_loss() -> None:
    """The loss is that of the rounded logits, without further rounding, in autocast too."""
    logits = (4 * randn(2, 3, 4, 4)).bfloat16()
    labels = torch.arange(2 * 16 * 16).view(2, 16, 16).remainder(3)
    expected = segmentation_loss(logits.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = segmentation_loss(logits, labels)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
