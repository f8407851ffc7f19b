"""The loss and the evaluation sums of a classifier against numbers worked by hand."""

import math

import pytest
import torch

from swin_moe.heads.classification import classification_loss, evaluation_sums
from tests.models import randn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smoothed_labels_by_hand(dtype: torch.dtype) -> None:
    """Probabilities (1/2, 1/4, 1/4), label 0, smoothing .3: targets (.8, .1, .1).

    -(.8 ln 1/2 + .1 ln 1/4 + .1 ln 1/4) = (.8 + .2 + .2) ln 2 = 1.2 ln 2. With label 1: targets (.1, .8, .1),
    (.1 + 1.6 + .2) ln 2 = 1.9 ln 2. Their mean is 1.55 ln 2; unsmoothed (1 + 2) / 2 ln 2.
    """
    logits = torch.tensor([[0.5, 0.25, 0.25]] * 2, dtype=dtype).log() + 3.0
    labels = torch.tensor([0, 1])
    smoothed = classification_loss(logits, labels, label_smoothing=0.3)
    assert smoothed.dtype == torch.float32
    assert smoothed.item() == pytest.approx(1.55 * math.log(2), rel=1e-6)
    assert classification_loss(logits, labels).item() == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_half_precision_logits_lose_nothing_more() -> None:
    logits = randn(8, 100).bfloat16()
    labels = torch.arange(8)
    assert classification_loss(logits, labels, 0.1) == classification_loss(logits.float(), labels, 0.1)


def test_evaluation_sums_skip_padding() -> None:
    """Images with probabilities (1/2, 1/4, 1/4): labels 0 (hit, ln 2), 2 (miss, ln 4), and padding.

    Loss ln 2 + 2 ln 2 = 3 ln 2, one hit (two among five), weight 2. The padding image would have been a
    hit with a loss.
    """
    logits = torch.tensor([[0.5, 0.25, 0.25]] * 3).log()
    sums = evaluation_sums(logits, torch.tensor([0, 2, 0]), torch.tensor([1.0, 1.0, 0.0]))
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, torch.tensor([3 * math.log(2), 1, 2, 2]).double(), rtol=1e-6, atol=0)


def test_evaluation_sums_add_up_over_batches() -> None:
    logits, labels = randn(10, 4, seed=1), torch.arange(10) % 4
    weights = torch.tensor([1.0] * 8 + [0.0] * 2)
    pieces = [evaluation_sums(logits[i : i + 5], labels[i : i + 5], weights[i : i + 5]) for i in (0, 5)]
    whole = evaluation_sums(logits[:8], labels[:8], weights[:8])
    torch.testing.assert_close(pieces[0] + pieces[1], whole, rtol=1e-6, atol=0)
    assert whole[-1] == 8


def test_top_5_of_seven_classes_by_hand() -> None:
    """Scores fall from class 0 to 6: the label is the first, the fifth, and the sixth."""
    logits = torch.arange(7.0, 0.0, -1.0).repeat(3, 1)
    _, top1, top5, images = evaluation_sums(logits, torch.tensor([0, 4, 5]), torch.ones(3)).tolist()
    assert (top1, top5, images) == (1.0, 2.0, 3.0)
