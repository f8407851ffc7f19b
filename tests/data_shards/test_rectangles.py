"""Images of H x W pixels against torchvision, timm, and plain loops over the draws of `draws.py`."""

import io
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from data_shards.augment.erasing import AREA, RATIO, draw_rectangles
from data_shards.augment.mixup import Mixer, weights
from data_shards.augment.operations import operate
from data_shards.augment.pipeline import Augment, AugmentConfig
from data_shards.augment.randaugment import ImageOp
from data_shards.errors import DataError
from data_shards.format.rng import DrawKey, Purpose, fold, uniform
from data_shards.image.decode import decode_crop, decode_image
from data_shards.image.geometry import (
    EvalTransform,
    Geometry,
    TrainTransform,
    covering,
    dct_factor,
    draw_crop,
    draw_flip,
)
from data_shards.stream.train import TrainStream
from tests.data_shards.conftest import SAMPLES
from tests.data_shards.image.smooth_images import assert_same_image, encode_jpeg, smooth_image
from tests.data_shards.streams import eval_stream, train_stream, webdataset_stream
from tests.data_shards.tiny_splits import bodies_of

SIDES = HEIGHT, WIDTH = 24, 40
RATIOS = (3 / 4, 4 / 3)


# Decoding.


@pytest.mark.parametrize("sides", [(24, 40), (40, 24), (8, 60)])
def test_train_image_is_torchvisions_resized_crop(sides: tuple[int, int]) -> None:
    """RandomResizedCrop(size=(h, w)) cuts a crop whose ratio does not look at h / w, and stretches it."""
    body, transform = encode_jpeg(smooth_image(120, 200)), TrainTransform(image_size=sides)
    image = Image.open(io.BytesIO(body))
    for position in range(12):
        crop, flip = (
            draw_crop(120, 200, DrawKey(3, position), transform),
            draw_flip(DrawKey(3, position), transform),
        )
        if dct_factor(crop, sides) > 1:  # decoded smaller: not the same pixels to begin with
            continue
        expected = tv.resized_crop(image, *crop, sides, InterpolationMode.BICUBIC)
        expected = tv.hflip(expected) if flip else expected
        ours = decode_image(body, transform, DrawKey(3, position))
        assert ours.shape == (3, *sides)
        assert_same_image(ours, np.asarray(expected).transpose(2, 0, 1))


def test_crops_are_distributed_as_torchvisions() -> None:
    """Area and log ratio of 3000 crops each: means within 4.5 standard errors, both for a wide image."""
    torch.manual_seed(0)
    transform, image = TrainTransform(image_size=SIDES), torch.empty(3, 120, 200)
    theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], list(RATIOS)) for _ in range(3000)]
    ours = [draw_crop(120, 200, DrawKey(0, position), transform) for position in range(3000)]
    for of in (lambda c: c[2] * c[3], lambda c: math.log(c[3] / c[2]), lambda c: c[0], lambda c: c[1]):
        a, b = (np.array([of(crop) for crop in crops], dtype=float) for crops in (ours, theirs))
        assert abs(a.mean() - b.mean()) < 4.5 * math.sqrt((a.var() + b.var()) / 3000)


def test_the_image_does_not_change_the_crop() -> None:
    crops = [
        [draw_crop(90, 70, DrawKey(1, position), TrainTransform(image_size=size)) for position in range(50)]
        for size in (24, (24, 40), (40, 24))
    ]
    assert crops[0] == crops[1] == crops[2]


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(96, 160, 2), (95, 160, 1), (96, 159, 1), (192, 320, 4), (4000, 159, 1)]
)
def test_both_sides_must_have_pixels_to_spare(height: int, width: int, factor: int) -> None:
    """24 x 40 pixels, 2 for each: 48 x 80; twice of it is 96 x 160, and four times 192 x 320."""
    transform = TrainTransform(image_size=SIDES, scale=(1.0, 1.0), ratio=(width / height, width / height))
    crop = draw_crop(height, width, DrawKey(0, 0), transform)
    assert (crop.height, crop.width) == (height, width)
    assert dct_factor(crop, SIDES) == factor
    if height < 1000:
        assert decode_crop(encode_jpeg(smooth_image(height, width)), Geometry(crop, SIDES)).shape == (
            height // factor,
            width // factor,
            3,
        )


@pytest.mark.parametrize("source", [(60, 90), (100, 90), (53, 300), (33, 47), (200, 61)])
@pytest.mark.parametrize(("sides", "ratio"), [((28, 42), 0.875), ((42, 28), 0.875), ((24, 48), 0.75)])
def test_eval_image_is_timms(source: tuple[int, int], sides: tuple[int, int], ratio: float) -> None:
    """timm scales an image so for an input that is no square, and torchvision cuts the centre out.

    The sizes are such that both round alike; torchvision's centre of an odd rest may lie one pixel further.
    """
    body = encode_jpeg(smooth_image(*source))
    covered = [math.floor(side / ratio) for side in sides]
    scaled = ResizeKeepRatio(covered, interpolation="bicubic")(Image.open(io.BytesIO(body)))
    height, width = covering(source, sides, ratio)
    assert scaled.size == (width, height)
    assert height == covered[0] or width == covered[1]
    ours = decode_image(body, EvalTransform(image_size=sides, crop_ratio=ratio))
    top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
    cut = np.asarray(scaled)[top : top + sides[0], left : left + sides[1]]
    assert_same_image(ours, cut.transpose(2, 0, 1))
    if (height - sides[0]) % 2 == 0 and (width - sides[1]) % 2 == 0:
        assert np.array_equal(cut, np.asarray(tv.center_crop(scaled, list(sides))))


def test_the_covering_size_by_hand() -> None:
    """To cover 32 x 48 pixels (28 x 42 at 0.875)."""
    assert covering((60, 90), (28, 42), 0.875) == (32, 48)  # as wide as what it covers
    assert covering((60, 60), (28, 42), 0.875) == (48, 48)  # the width decides
    assert covering((64, 192), (28, 42), 0.875) == (32, 96)  # the height decides
    assert covering((10, 10), (28, 28), 0.875) == (32, 32)
    assert covering((100, 90), (28, 42), 0.875) == (53, 48)  # 100 * 48 / 90 = 53.3


def test_eval_without_a_crop_stretches() -> None:
    body = encode_jpeg(smooth_image(60, 90))
    expected = Image.open(io.BytesIO(body)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    assert_same_image(
        decode_image(body, EvalTransform(image_size=SIDES)), np.asarray(expected).transpose(2, 0, 1)
    )


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (-1, 3)])
def test_a_side_below_one_is_refused(size: tuple[int, int], shards: Path) -> None:
    with pytest.raises(DataError, match=r"image_size \(.*\) must be at least 1"):
        TrainTransform(image_size=size)
    with pytest.raises(DataError, match=r"image_size \(.*\) must be at least 1"):
        eval_stream(shards, batch_size=1, image_size=size)


# Streams.


def train(shards: Path, **options: object) -> TrainStream:
    batches = {"seed": 1, "global_batch_size": 24, "micro_batch_size": 6}
    return train_stream(shards, TrainTransform(image_size=SIDES), **(batches | options))


def test_the_training_stream_gives_these_images(shards: Path) -> None:
    bodies, _ = bodies_of(shards)
    with train(shards) as stream:
        for batch in islice(stream, 8):
            assert batch["image"].shape == (6, 3, HEIGHT, WIDTH)
            assert batch["image"].is_contiguous(memory_format=torch.channels_last)
            where, rows = stream.order.locate(batch.positions.numpy())
            for image, position, shard, row in zip(batch["image"], batch.positions, where, rows, strict=True):
                body = bodies[int(shard) * 20 + int(row)]
                expected = decode_image(body, stream.transform.geometry, DrawKey(1, int(position)))
                assert np.array_equal(image.numpy(), expected)


def test_the_evaluation_stream_gives_these_images(shards: Path) -> None:
    bodies, _ = bodies_of(shards)
    options = {"batch_size": 25, "image_size": SIDES, "crop_ratio": 0.75}
    with eval_stream(shards, **options) as stream:
        batches = list(stream)
    assert len(batches) == 5
    for batch in batches:
        assert batch["image"].shape == (25, 3, HEIGHT, WIDTH)
        for image, position in zip(batch["image"], batch.positions.tolist(), strict=True):
            expected = (
                decode_image(bodies[position], EvalTransform(image_size=SIDES, crop_ratio=0.75))
                if position >= 0
                else 0
            )
            assert np.array_equal(image.numpy(), np.broadcast_to(expected, image.shape))
    assert (batches[-1].positions == -1).sum() == 125 - SAMPLES


def test_tars_of_others_give_these_images(shards: Path) -> None:
    bodies, _ = bodies_of(shards)
    transform = TrainTransform(image_size=SIDES)
    batches = {"seed": 1, "global_batch_size": 4, "micro_batch_size": 4}
    place = f"{shards}/{{000000..000005}}.tar"
    with webdataset_stream(place, transform, **batches) as stream:
        (batch,) = islice(stream, 1)
    assert batch["image"].shape == (4, 3, HEIGHT, WIDTH)
    for image, position in zip(batch["image"], batch.positions.tolist(), strict=True):
        assert any(
            np.array_equal(image.numpy(), decode_image(b, transform, DrawKey(1, position))) for b in bodies
        )


def test_ranks_share_the_images_of_one(shards: Path) -> None:
    with train(shards, micro_batch_size=24) as stream:
        (whole,) = islice(stream, 1)
    parts = []
    for rank in range(2):
        with train(shards, micro_batch_size=12, dp_rank=rank, dp_size=2) as stream:
            parts += list(islice(stream, 1))
    assert torch.equal(torch.cat([part["image"] for part in parts]), whole["image"])


# Augmentation on the device.


def scalars(purpose: Purpose, seed: int, position: int) -> Iterator[float]:
    """The draws of a sample, one after the other."""
    key = fold(purpose, seed, position)
    return (uniform(key, counter) for counter in range(1000))


@pytest.mark.parametrize("sides", [SIDES, (40, 24), (6, 64)])
def test_erased_rectangles_by_plain_loops(sides: tuple[int, int]) -> None:
    tall, wide = sides
    expected = []
    for position in range(400):
        draws = scalars(Purpose.ERASE, 9, position)
        chosen = next(draws) < 0.5
        for _ in range(10):
            u_area, u_ratio, u_top, u_left = islice(draws, 4)
            area = tall * wide * (AREA[0] + u_area * (AREA[1] - AREA[0]))
            ratio = math.exp(math.log(RATIO[0]) + u_ratio * (math.log(RATIO[1]) - math.log(RATIO[0])))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < tall and width < wide:
                if chosen:
                    top, left = int(u_top * (tall - height + 1)), int(u_left * (wide - width + 1))
                    expected.append([position, top, left, height, width])
                break
    found = draw_rectangles(0.5, 9, torch.arange(400), sides)
    assert torch.stack([*found], 1).tolist() == expected
    assert len(expected) > 100
    assert (found.top + found.height <= tall).all()
    assert (found.left + found.width <= wide).all()
    if sides == SIDES:
        assert (found.left + found.width).max() > tall  # the other way round they would not reach so far


@pytest.mark.parametrize("sides", [SIDES, (40, 24), (23, 37)])
def test_cutmix_boxes_and_shares_by_plain_loops(sides: tuple[int, int]) -> None:
    """Alpha 1 draws the share evenly, so that lam is the third draw of the pair itself."""
    mix = Mixer(0.0, 1.0, 1.0, 0.5).draw(4, torch.arange(200), sides)
    share = weights(mix, sides)
    assert share.shape == (200, 1, *sides)
    for position in range(200):
        _, _, lam, *at = islice(scalars(Purpose.MIX, 4, position // 2), 5)
        box = []
        for side, place in zip(sides, at, strict=True):
            half, centre = int(side * math.sqrt(1 - lam)) // 2, int(place * side)
            box += [max(0, centre - half), min(side, centre + half)]
        assert mix.box[position].tolist() == box
        expected = torch.ones(sides)
        expected[box[0] : box[1], box[2] : box[3]] = 0
        assert torch.equal(share[position, 0], expected)
        assert mix.lam[position].item() == pytest.approx(expected.mean().item(), abs=1e-6)
    assert mix.box[:, 1].max() == sides[0]
    assert mix.box[:, 3].max() == sides[1]


def source_of(op: ImageOp, value: float, x: float, y: float) -> tuple[float, float]:
    """Whence the pixel centre (x, y) of an image of 24 x 40 comes, worked out from the geometry."""
    if op == ImageOp.ROTATE:  # counter-clockwise about (20, 12); y points down
        angle, dx, dy = math.radians(value), x - WIDTH / 2, y - HEIGHT / 2
        return (
            WIDTH / 2 + math.cos(angle) * dx - math.sin(angle) * dy,
            HEIGHT / 2 + math.sin(angle) * dx + math.cos(angle) * dy,
        )
    shear_x, shear_y, shift_x, shift_y = (
        value if op == kind else 0.0
        for kind in (ImageOp.SHEAR_X, ImageOp.SHEAR_Y, ImageOp.TRANSLATE_X, ImageOp.TRANSLATE_Y)
    )
    return x + shear_x * y + shift_x, y + shear_y * x + shift_y


def interpolated(image: Tensor, u: float, v: float) -> list[float]:
    """Bilinear between pixel centres, the border's pixels going on: (3,)."""
    left, top = math.floor(u - 0.5), math.floor(v - 0.5)
    a, b = u - 0.5 - left, v - 0.5 - top
    found = [0.0] * 3
    for i, j, weight in ((0, 0, (1 - a) * (1 - b)), (1, 0, a * (1 - b)), (0, 1, (1 - a) * b), (1, 1, a * b)):
        column, row = min(max(left + i, 0), WIDTH - 1), min(max(top + j, 0), HEIGHT - 1)
        for channel in range(3):
            found[channel] += weight * image[channel, row, column].item()
    return found


@pytest.mark.parametrize(
    ("op", "value"),
    [
        (ImageOp.ROTATE, 27.0),
        (ImageOp.ROTATE, -13.3),
        (ImageOp.SHEAR_X, 0.27),
        (ImageOp.SHEAR_Y, -0.27),
        (ImageOp.TRANSLATE_X, 16.2),
        (ImageOp.TRANSLATE_Y, -9.7),
    ],
)
def test_warps_by_plain_loops(op: ImageOp, value: float) -> None:
    generator = np.random.default_rng(5)
    image = torch.from_numpy(generator.integers(0, 256, (3, *SIDES), dtype=np.uint8))
    ours, fill = image[None].clone(), torch.tensor([124, 116, 104], dtype=torch.uint8)
    value = float(np.float32(value))
    operate(ours, torch.tensor([op]), torch.tensor([value]), fill, "bilinear")
    wrong = 0
    for row in range(HEIGHT):
        for column in range(WIDTH):
            u, v = source_of(op, value, column + 0.5, row + 0.5)
            is_inside = 0 <= u < WIDTH and 0 <= v < HEIGHT
            expected = interpolated(image, u, v) if is_inside else fill.tolist()
            got = ours[0, :, row, column].tolist()
            wrong += any(abs(a - math.floor(b + 2**-8)) > 1 for a, b in zip(got, expected, strict=True))
    assert wrong <= 2  # a source point on the very edge may fall either way


def test_all_of_it_together_keeps_to_its_sides() -> None:
    """Mixed images lie between their parts, pairs are pairs, and a batch may be split anywhere."""
    config = AugmentConfig(erase_prob=1.0)
    augment = Augment(config, seed=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    generator = np.random.default_rng(2)
    images = torch.from_numpy(generator.integers(0, 256, (32, 3, *SIDES), dtype=np.uint8))
    labels, positions = torch.arange(32) % 5, torch.arange(32)
    whole, targets = augment(images, labels, positions)
    assert whole.shape == (32, 3, *SIDES)
    parts = [augment(*(x[i : i + 4] for x in (images, labels, positions)))[0] for i in range(0, 32, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert targets.lam.unique().numel() > 8


@pytest.mark.parametrize("sides", [(1, 9), (2, 7), (3, 3), (1, 1)])
def test_slim_images_are_augmented(sides: tuple[int, int]) -> None:
    config = AugmentConfig(auto_augment="rand-m9-mstd0.5-n8-inc1", erase_prob=1.0)
    augment = Augment(config, seed=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    images = torch.full((64, 3, *sides), 9, dtype=torch.uint8)
    mixed, _ = augment(images, torch.zeros(64).long(), torch.arange(64))
    assert mixed.shape == (64, 3, *sides)
    assert mixed.isfinite().all()


def test_gray_images_have_three_channels() -> None:
    body = simplejpeg.encode_jpeg(
        smooth_image(28, 50, 1), quality=95, colorspace="GRAY", colorsubsampling="Gray"
    )
    assert decode_image(body, EvalTransform(image_size=SIDES, crop_ratio=0.875)).shape == (3, *SIDES)
    assert decode_image(body, TrainTransform(image_size=SIDES), DrawKey(0, 0)).shape == (3, *SIDES)
