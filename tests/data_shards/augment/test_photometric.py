"""Photo-metric distortion against the rule pixel by pixel in Python, and its draws against their ranges."""

import colorsys
import math

import numpy as np
import pytest
import torch

from data_shards.augment.hsv import to_hsv, to_rgb
from data_shards.augment.photometric import PhotometricDistortion, PhotometricPlan, distort
from data_shards.augment.pixel_labels import PixelAugment, clear_padding
from data_shards.errors import DataError
from data_shards.format.rng import Purpose, fold, uniform

SEED = 7
COLOURS = np.concatenate(
    [
        np.random.default_rng(0).integers(0, 256, (9400, 3)),
        np.array(
            [[r, g, b] for r in (0, 1, 127, 254, 255) for g in (0, 1, 128, 255) for b in (0, 2, 254, 255)]
        ),
        np.repeat(np.arange(256), 3).reshape(-1, 3),
    ]
).astype(np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def hsv_slowly(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Hue in 0 ... 179 and saturation, rounded to the fractions of 12 bits that OpenCV has, and value."""
    red, green, blue = colour
    value, chroma = max(colour), max(colour) - min(colour)
    if not chroma:
        return 0, 0, value
    saturation = math.floor(chroma * round(255 * 4096 / value) / 4096 + 0.5)
    if red == value:
        position = green - blue
    elif green == value:
        position = blue - red + 2 * chroma
    else:
        position = red - green + 4 * chroma
    return math.floor(position * round(30 * 4096 / chroma) / 4096 + 0.5) % 180, saturation, value


def rgb_slowly(hue: int, saturation: int, value: int) -> tuple[int, int, int]:
    """By the sectors of the circle, in whole numbers, rounded down."""
    sector, f = divmod(hue, 30)
    p = value * (255 - saturation) // 255
    q = value * (7650 - saturation * f) // 7650
    t = value * (7650 - saturation * (30 - f)) // 7650
    return [(value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q)][sector]


def mapped(colour: tuple[int, ...], factor: float, summand: float) -> tuple[int, ...]:
    """Scaled and shifted in float32, clipped, rounded down."""
    values = np.array(colour, np.float32) * np.float32(factor) + np.float32(summand)
    return tuple(int(value) for value in values.clip(0, 255))


def distorted_slowly(colour: tuple[int, ...], position: int) -> tuple[int, ...]:
    """The published rule, step by step, for one colour of the sample at a position."""
    key = fold(Purpose.PHOTOMETRIC, SEED, position)
    first, *chosen = (uniform(key, i) < 0.5 for i in range(5))
    contrast = 0.5 + uniform(key, 6)
    if chosen[0]:
        colour = mapped(colour, 1.0, -32 + 64 * uniform(key, 5))
    if chosen[1] and first:
        colour = mapped(colour, contrast, 0.0)
    if chosen[2]:
        hue, saturation, value = hsv_slowly(colour)
        colour = rgb_slowly(hue, mapped((saturation,), 0.5 + uniform(key, 7), 0.0)[0], value)
    if chosen[3]:
        hue, saturation, value = hsv_slowly(colour)
        colour = rgb_slowly((hue + math.floor(36 * uniform(key, 8)) - 18) % 180, saturation, value)
    if chosen[1] and not first:
        colour = mapped(colour, contrast, 0.0)
    return colour


def as_image(colours: np.ndarray) -> torch.Tensor:
    """(N, 3) -> (1, 3, 1, N)."""
    return torch.from_numpy(colours.T.copy())[None, :, None]


def test_colours_by_hand() -> None:
    # red, yellow, green, a gray; (200, 100, 50): S = 150 x 255 / 200 = 191.25, H = 50 x 30 / 150 = 10
    colours = np.array([[255, 0, 0], [255, 255, 0], [0, 255, 0], [9, 9, 9], [200, 100, 50]], np.uint8)
    hue, saturation, value = (part[0, 0].tolist() for part in to_hsv(as_image(colours)))
    assert hue == [0, 30, 60, 0, 10]
    assert saturation == [255, 255, 255, 0, 191]
    assert value == [255, 255, 255, 9, 200]
    # back: 200 x 64 / 255 = 50.2; m of green is 20 / 30: 200 (1 - 191 / 255 x 2 / 3) = 100.1
    back = to_rgb(*(torch.tensor([[[part]]]).int() for part in (10, 191, 200)))
    assert back.flatten().tolist() == [200, 100, 50]


def test_conversions_are_the_slow_ones_and_those_of_colorsys() -> None:
    parts = torch.stack(to_hsv(as_image(COLOURS)))[:, 0, 0].T.tolist()
    for colour, hsv in zip(COLOURS.tolist(), parts, strict=True):
        assert tuple(hsv) == hsv_slowly(tuple(colour))
        hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in colour))
        distance = abs(hsv[0] - 180 * hue)
        assert min(distance, 180 - distance) <= 0.7  # fractions of 12 bits, times up to 5 x 255
        assert abs(hsv[1] - 255 * saturation) <= 0.54
        assert hsv[2] == round(255 * value)
    hsv = torch.from_numpy(COLOURS).int()
    hsv[:, 0] %= 180
    back = to_rgb(*(part[None, None] for part in hsv.unbind(1)))[0, :, 0].T.tolist()
    for part, colour in zip(hsv.tolist(), back, strict=True):
        assert tuple(colour) == rgb_slowly(*part)


def test_ten_thousand_colours_are_distorted_by_the_rule() -> None:
    """Each colour by the draws of one of 40 samples, which are distorted in one batch."""
    colours = COLOURS[: len(COLOURS) // 40 * 40].reshape(40, -1, 3)
    images = torch.from_numpy(colours).permute(0, 2, 1)[:, :, None].contiguous()
    positions = torch.arange(100, 140)
    plan = PhotometricDistortion().draw(SEED, positions)
    distort(images, plan)
    for row, of_sample in enumerate(colours.tolist()):
        expected = [distorted_slowly(tuple(colour), 100 + row) for colour in of_sample]
        assert [tuple(colour) for colour in images[row, :, 0].T.tolist()] == expected
    assert 10 < int(plan.saturated.sum()) < 30
    assert 10 < int(plan.turned.sum()) < 30


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (12, 3, 5, 7), dtype=np.uint8))
    positions, sizes = torch.arange(50, 62), torch.tensor([[5, 7]] * 12)
    augment = PixelAugment(PhotometricDistortion(), seed=SEED, mean=MEAN, std=STD)
    before = images.clone()
    together = augment(images, sizes, positions)
    assert torch.equal(images, before)
    alone = [augment(images[i : i + 1], sizes[:1], positions[i : i + 1]) for i in (5, 0, 11)]
    assert torch.equal(torch.cat(alone), together[[5, 0, 11]])
    assert not torch.equal(
        together, PixelAugment(PhotometricDistortion(), seed=8, mean=MEAN, std=STD)(images, sizes, positions)
    )


def test_draws_fill_their_ranges() -> None:
    plan = PhotometricDistortion().draw(3, torch.arange(4000))
    assert set(plan.hue[plan.turned].tolist()) == set(range(-18, 18))
    brightened = plan.before[:, 128].int() - 128
    assert (brightened.min(), brightened.max()) <= (-64, 64)  # contrast halves or adds half of it at most
    for share in (plan.saturated, plan.turned):
        assert abs(share.double().mean() - 0.5) < 0.04
    after = (plan.after != torch.arange(256).to(torch.uint8)).any(1)
    assert abs(after.double().mean() - 0.25) < 0.04  # contrast, and in the second order
    off = PhotometricDistortion(brightness=0, contrast=(1.0, 1.0), saturation=(1.0, 1.0), hue=0)
    images = as_image(COLOURS).expand(50, -1, -1, -1).contiguous()
    distort(images, off.draw(3, torch.arange(50)))
    assert torch.equal(images, as_image(COLOURS).expand(50, -1, -1, -1))


def test_padding_is_zero_after_normalizing() -> None:
    images = torch.full((3, 3, 4, 6), 200, dtype=torch.uint8)
    sizes = torch.tensor([[4, 6], [2, 6], [3, 1]], dtype=torch.int32)
    for photometric in (None, PhotometricDistortion()):
        result = PixelAugment(photometric, seed=0, mean=MEAN, std=STD)(images, sizes, torch.arange(3))
        for row, (height, width) in enumerate(sizes.tolist()):
            inside = result[row, :, :height, :width]
            assert torch.equal(inside, inside[:, :1, :1].expand_as(inside))
            assert (inside != 0).all()
            assert result[row].count_nonzero() == 3 * height * width
    plain = PixelAugment(None, seed=0, mean=MEAN, std=STD)(images, sizes, torch.arange(3))
    assert plain[0, 1, 0, 0].item() == pytest.approx((200 / 255 - 0.456) / 0.224, rel=1e-5)
    assert torch.equal(clear_padding(torch.ones(1, 3, 2, 2), torch.tensor([[0, 0]])), torch.zeros(1, 3, 2, 2))


def test_a_plan_may_change_nothing() -> None:
    identity = torch.arange(256).to(torch.uint8).expand(1, 256)
    none, zero = torch.tensor([False]), torch.tensor([0])
    images = as_image(COLOURS)
    distort(images, PhotometricPlan(identity, none, identity, none, zero, identity))
    assert torch.equal(images, as_image(COLOURS))


@pytest.mark.parametrize(
    "options",
    [{"brightness": -1.0}, {"contrast": (1.5, 0.5)}, {"saturation": (-0.5, 1.0)}, {"hue": 91}],
)
def test_nonsense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(DataError, match=next(iter(options))):
        PhotometricDistortion(**options)
