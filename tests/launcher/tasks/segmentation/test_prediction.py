"""Views of an image and how they are joined: bands, sliding windows, ratios and mirrored views.

The models here are functions of the pixels, whose results a slow rule of the test's own computes too.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.tasks.answers import NOT_FINITE, Answer, AnswerOptions
from launcher.tasks.segmentation.answers import answers
from launcher.tasks.segmentation.prediction import (
    SlidingWindows,
    ViewLogits,
    Views,
    classes_of,
    predict_views,
)
from swin_moe.heads.resize import resize_band, resize_twice_band
from swin_moe.heads.upernet import SegmentationOutput
from swin_moe.moe.layer import MoEStats
from tests.models import randn

KEYS = torch.arange(1)


class Linear:
    """Logits of 5 classes at a quarter of the size: a fixed linear function of each token's mean colour.

    It keeps the images that it was called with.
    """

    def __init__(self) -> None:
        self.weight, self.seen = randn(5, 3, seed=9), list[Tensor]()

    def __call__(self, images: Tensor, keys: Tensor) -> SegmentationOutput:
        assert len(images) == len(keys)
        self.seen.append(images)
        tokens = F.avg_pool2d(images, 4, ceil_mode=True, count_include_pad=False)
        logits = torch.einsum("kc,bchw->bkhw", self.weight, tokens)
        counts = torch.ones(len(images), 2, dtype=torch.int64)
        zero = torch.zeros((), dtype=torch.int64)
        stats = MoEStats(zero.float(), counts.sum(0), zero, zero.float(), zero, counts, counts[:, 0])
        return SegmentationOutput(logits, None, {"layer": stats})


def interpolated(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("between", [(40, 52), (23, 61), (64, 64)])
def test_two_steps_of_resizing_in_bands(between: tuple[int, int]) -> None:
    x, size = randn(2, 3, 10, 13), (64, 64)
    whole = resize_twice_band(x, between, size, slice(0, 64))
    torch.testing.assert_close(whole, interpolated(interpolated(x, between), size))
    for band in (1, 7, 33):
        parts = [
            resize_twice_band(x, between, size, slice(top, min(64, top + band))) for top in range(0, 64, band)
        ]
        assert torch.equal(torch.cat(parts, dim=2), whole)
    once = resize_twice_band(x, size, size, slice(3, 9))
    assert torch.equal(once, resize_band(x, size, slice(3, 9)))


@pytest.mark.parametrize("number", [1, 3])
def test_bands_equal_the_whole(number: int) -> None:
    views = [
        ViewLogits(randn(2, 5, 9 + i, 11, seed=i), (33 + i, 40), mirrored=i % 2 == 1) for i in range(number)
    ]
    whole = classes_of(views, (70, 91), band=70)
    assert whole.unique().tolist() == [0, 1, 2, 3, 4]
    for band in (1, 16, 69, 1000):
        assert torch.equal(classes_of(views, (70, 91), band), whole)


def test_the_complete_image() -> None:
    model, image = Linear(), randn(1, 3, 30, 41)
    found = predict_views(model, [image], KEYS, (45, 60), Views(None, flip=False, band=8))
    logits = interpolated(interpolated(model(image, KEYS).logits, (30, 41)), (45, 60))
    assert torch.equal(found.labels, logits.argmax(1).to(torch.uint8))
    assert found.moe["layer"].load.tolist() == [1, 1]


def test_six_ratios_mirrored_are_twelve_maps() -> None:
    """Probabilities are averaged at the size of the image, each mirrored back."""
    model, size = Linear(), (32, 44)
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    images = [randn(1, 3, int(32 * r), int(44 * r), seed=i) for i, r in enumerate(ratios)]
    found = predict_views(model, images, KEYS, size, Views(None, flip=True, band=5))
    assert len(model.seen) == 12
    assert found.moe["layer"].choices is not None
    assert found.moe["layer"].choices.tolist() == [[12, 12]]
    total = torch.zeros(1, 5, *size)
    for image in images:
        for mirrored in (False, True):
            logits = Linear()(image.flip(-1) if mirrored else image, KEYS).logits
            probabilities = interpolated(interpolated(logits, image.shape[2:]), size).softmax(1)
            total += probabilities.flip(-1) if mirrored else probabilities
    differs = found.labels != total.argmax(1)
    assert differs.float().mean() < 0.002  # ties, up to rounding


@pytest.mark.parametrize(("height", "width"), [(40, 57), (16, 100), (9, 12)])
@pytest.mark.parametrize("at_once", [1, 4])
def test_sliding_windows(height: int, width: int, at_once: int) -> None:
    """The mean of the logits of all windows that see a pixel; mirrored windows are of the mirrored image."""
    model, image = Linear(), randn(1, 3, height, width)
    slide = SlidingWindows((16, 16), (10, 10), at_once)
    found = predict_views(model, [image], KEYS, (height, width), Views(slide, flip=False, band=7))
    total, count = torch.zeros(1, 5, height, width), torch.zeros(height, width)
    top = 0
    while True:
        left, row = 0, max(0, min(top, height - 16))
        while True:
            column = max(0, min(left, width - 16))
            window = image[..., row : row + 16, column : column + 16]
            logits = interpolated(Linear()(window, KEYS).logits, window.shape[2:])
            total[..., row : row + 16, column : column + 16] += logits
            count[row : row + 16, column : column + 16] += 1
            if left + 16 >= width:
                break
            left += 10
        if top + 16 >= height:
            break
        top += 10
    assert count.min() >= 1
    wanted = (total / count).argmax(1)
    assert (found.labels != wanted).float().mean() < 0.005  # ties, up to rounding
    assert found.moe["layer"].load.tolist() == [int(len_of(model, at_once))] * 2


def len_of(model: Linear, at_once: int) -> int:
    """The windows that a model has seen."""
    assert all(len(images) <= at_once for images in model.seen)
    return sum(map(len, model.seen))


def test_constant_logits_come_out_constant() -> None:
    def constant(images: Tensor, keys: Tensor) -> SegmentationOutput:
        logits = torch.tensor([0.1, 0.7, 0.3]).view(1, 3, 1, 1).expand(len(images), 3, 4, 4)
        return SegmentationOutput(logits, None, {})

    slide = SlidingWindows((16, 16), (7, 7), 3)
    views = Views(slide, flip=True, band=10)
    found = predict_views(constant, [randn(2, 3, 40, 33)], torch.arange(2), (40, 33), views)
    assert found.labels.unique().tolist() == [1]


@pytest.mark.parametrize("slide", [None, SlidingWindows((16, 16), (8, 8), 2)])
def test_an_image_with_logits_that_are_not_finite_has_no_answer(slide: SlidingWindows | None) -> None:
    """One pixel of one image; the other image has its answer."""
    image = randn(2, 3, 30, 41)
    image[1, 0, 29, 40] = torch.inf
    found = predict_views(Linear(), [image], torch.arange(2), (45, 60), Views(slide, flip=False, band=8))
    assert found.finite.tolist() == [True, False]
    batch = Batch(tensors={}, positions=torch.arange(2), weights=torch.ones(2))
    one, other = answers(found, batch, AnswerOptions())
    assert isinstance(one, Answer)
    assert other == NOT_FINITE
