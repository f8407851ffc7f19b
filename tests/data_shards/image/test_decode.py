"""Decoding against PIL, and crops against their definition."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey, Purpose, fold
from data_shards.image.decode import decode_image, decode_views, resize, stack_views
from data_shards.image.geometry import (
    Crop,
    EvalTransform,
    Geometry,
    TrainTransform,
    dct_factor,
    draw_crop,
    draw_flip,
)
from data_shards.image.pixels import decode_pixels, image_size
from tests.data_shards.image.smooth_images import assert_same_image, encode_jpeg, smooth_image

PLAIN = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip_prob": 0.0}


def by_pil(body: bytes, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    image = Image.open(io.BytesIO(body)).convert("RGB").crop(box)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def test_train_image_is_pils_crop_and_resize() -> None:
    body, transform = encode_jpeg(smooth_image(120, 200)), TrainTransform(image_size=48)
    flips = set()
    for position in range(20):
        crop, flip = (
            draw_crop(120, 200, DrawKey(3, position), transform),
            draw_flip(DrawKey(3, position), transform),
        )
        box = crop.left, crop.top, crop.left + crop.width, crop.top + crop.height
        expected = by_pil(body, box, (48, 48))
        assert_same_image(
            decode_image(body, transform, DrawKey(3, position)), expected[:, :, ::-1] if flip else expected
        )
        flips.add(flip)
    assert flips == {True, False}


@pytest.mark.parametrize(("side", "factor"), [(127, 1), (128, 2), (255, 2), (256, 4), (3000, 4)])
def test_crops_with_twice_the_pixels_are_decoded_smaller(side: int, factor: int) -> None:
    # 32 pixels x 2 to spare x factor 2 = 128; only 1, 2 and 4
    assert dct_factor(Crop(3, 5, side, 4000), (32, 9)) == factor
    assert dct_factor(Crop(3, 5, 4000, side), (9, 32)) == factor


def soft_noise(height: int, width: int) -> np.ndarray:
    """An image with the spectrum of natural images, 1 / f: (H, W, 3) uint8."""
    generator = np.random.default_rng(3)
    f = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width)
    channels = []
    for _ in range(3):
        waves = np.fft.rfft2(generator.standard_normal((height, width))) / np.maximum(f, 1)
        noise = np.fft.irfft2(waves, s=(height, width))
        channels.append(127 + 50 * noise / noise.std())
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("subsampling", ["444", "420"])
def test_decoding_smaller_is_the_same_image_at_44_db(subsampling: str) -> None:
    body = simplejpeg.encode_jpeg(soft_noise(257, 331), quality=92, colorsubsampling=subsampling)
    transform, factors = TrainTransform(image_size=32, scale=(0.2, 1.0), flip_prob=0.0), set()
    for position in range(24):
        crop = draw_crop(257, 331, DrawKey(3, position), transform)
        factor = dct_factor(crop, (32, 32))
        top, left, height, width = (side // factor * factor for side in crop)  # whole pixels when reduced
        expected = by_pil(body, (left, top, left + width, top + height), (32, 32)).astype(int)
        error = np.mean((decode_image(body, transform, DrawKey(3, position)) - expected) ** 2)
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > (60 if factor == 1 else 44)
        factors.add(factor)
    assert factors == {1, 2, 4}


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize(("height", "width"), [(64, 48), (61, 47), (5, 9)])
def test_smaller_images_have_sides_rounded_up_in_every_format(height: int, width: int, factor: int) -> None:
    png = io.BytesIO()
    Image.fromarray(smooth_image(height, width)).save(png, "PNG")
    full = smooth_image(height, width).astype(float)
    for body in (encode_jpeg(smooth_image(height, width)), png.getvalue()):
        pixels = decode_pixels(body, factor)
        assert pixels.shape == (-(-height // factor), -(-width // factor), 3)
        whole = full[: height // factor * factor, : width // factor * factor]
        boxes = whole.reshape(height // factor, factor, width // factor, factor, 3).mean((1, 3))
        assert np.abs(pixels[: height // factor, : width // factor] - boxes).mean() < 4


def test_crops_obey_their_ranges_and_reach_their_ends() -> None:
    transform = TrainTransform(image_size=8, scale=(0.25, 0.5), ratio=(0.5, 2.0))
    crops = [draw_crop(300, 300, DrawKey(0, position), transform) for position in range(2000)]
    areas = np.array([c.height * c.width / 300**2 for c in crops])
    ratios = np.array([c.width / c.height for c in crops])
    assert 0.245 < areas.min() < 0.26
    assert 0.49 < areas.max() < 0.505
    assert 0.49 < ratios.min() < 0.51
    assert 1.96 < ratios.max() < 2.05
    assert abs(np.mean(np.log(ratios))) < 0.03  # log-uniform
    assert all(0 <= c.top <= 300 - c.height and 0 <= c.left <= 300 - c.width for c in crops)
    assert min(c.top for c in crops) == 0
    assert any(c.top == 300 - c.height for c in crops)


def test_a_draw_is_a_function_of_seed_and_position() -> None:
    transform = TrainTransform(image_size=8)
    assert draw_crop(90, 90, DrawKey(1, 5), transform) == draw_crop(90, 90, DrawKey(1, 5), transform)
    assert len({draw_crop(90, 90, DrawKey(*key), transform) for key in [(1, 5), (1, 6), (2, 5), (5, 1)]}) == 4


def test_fallback_is_the_central_crop() -> None:
    # 10 x 100 pixels: no crop of all the area has a ratio in 3/4 ... 4/3.
    # Width = round(10 * 4/3) = 13, left = (100 - 13) // 2 = 43.
    wide = TrainTransform(image_size=8, scale=(1.0, 1.0))
    assert draw_crop(10, 100, DrawKey(0, 0), wide) == Crop(0, 43, 10, 13)
    assert draw_crop(100, 10, DrawKey(0, 0), wide) == Crop(43, 0, 13, 10)
    assert draw_crop(100, 1, DrawKey(0, 0), TrainTransform(image_size=8, ratio=(9.0, 9.0))) == Crop(
        49, 0, 1, 1
    )


def test_without_augmentation_it_is_the_plain_resize() -> None:
    body = encode_jpeg(smooth_image(40, 40))
    same = decode_image(body, TrainTransform(image_size=40, **PLAIN), DrawKey(0, 0))
    np.testing.assert_array_equal(same, decode_pixels(body).transpose(2, 0, 1))
    smaller = decode_image(body, TrainTransform(image_size=24, **PLAIN), DrawKey(0, 0))
    np.testing.assert_array_equal(smaller, decode_image(body, EvalTransform(image_size=24)))
    assert_same_image(smaller, by_pil(body, (0, 0, 40, 40), (24, 24)))


def test_gray_becomes_three_equal_channels() -> None:
    body = simplejpeg.encode_jpeg(
        smooth_image(28, 28, 1), quality=95, colorspace="GRAY", colorsubsampling="Gray"
    )
    image = decode_image(body, EvalTransform(image_size=32))
    assert image.shape == (3, 32, 32)
    np.testing.assert_array_equal(image[0], image[1])
    np.testing.assert_array_equal(image[0], image[2])
    assert_same_image(image, by_pil(body, (0, 0, 28, 28), (32, 32)))


def test_eval_resizes_the_short_side_and_cuts_the_centre() -> None:
    body = encode_jpeg(smooth_image(60, 90))
    # 28 / 0.875 = 32: 60 x 90 becomes 32 x 48, and the centre 28 x 28 starts at row 2 and column 10.
    expected = by_pil(body, (0, 0, 90, 60), (48, 32))[:, 2:30, 10:38]
    assert_same_image(decode_image(body, EvalTransform(image_size=28, crop_ratio=0.875)), expected)
    with pytest.raises(DataError, match=r"crop_ratio \(1.5\)"):
        decode_image(body, EvalTransform(image_size=28, crop_ratio=1.5))


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "L"), ("JPEG", "CMYK"), ("BMP", "RGB")])
def test_pil_reads_what_libjpeg_turbo_does_not(kind: str, mode: str) -> None:
    image, file = Image.fromarray(smooth_image(30, 40)).convert(mode), io.BytesIO()
    image.save(file, kind)
    expected = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    assert image_size(file.getvalue()) == (30, 40)
    np.testing.assert_array_equal(decode_pixels(file.getvalue()), expected)


@pytest.mark.parametrize("cut", [0, 10, 400])
def test_undecodable_is_a_data_error(cut: int) -> None:
    with pytest.raises(DataError, match="undecodable image"):
        decode_image(encode_jpeg(smooth_image(60, 60))[:cut], EvalTransform(image_size=8))


def test_resize_of_one_pixel_is_flat() -> None:
    assert (
        resize(np.full((1, 1, 3), 9, np.uint8), Geometry(Crop(0, 0, 1, 1), (4, 5))).tolist()
        == np.full((3, 4, 5), 9).tolist()
    )


@pytest.mark.parametrize(
    ("option", "value"), [("image_size", 0), ("scale", (0.5, 0.2)), ("ratio", (0.0, 1.0)), ("flip_prob", 2.0)]
)
def test_nonsense_is_refused(option: str, value: object) -> None:
    with pytest.raises(DataError, match=option):
        TrainTransform(**{"image_size": 8, option: value})


def test_further_views_have_draws_of_their_own() -> None:
    """View 0 draws what a sample of one view does: the key of its draws is that of (seed, position)."""
    assert DrawKey(3, 5).draws(Purpose.AUGMENT) == fold(Purpose.AUGMENT, 3, 5)
    assert DrawKey(3, 5, 2).draws(Purpose.AUGMENT) == fold(Purpose.AUGMENT, 3, 5, 2)
    transform = TrainTransform(image_size=8)
    assert len({draw_crop(90, 90, DrawKey(3, 5, view), transform) for view in range(20)}) == 20
    flips = [draw_flip(DrawKey(3, 5, view), transform) for view in range(200)]
    assert 70 < sum(flips) < 130


def test_views_of_one_decoding_are_what_each_is_alone() -> None:
    """Where no view is decoded at a reduced size: a large result, small crops of it, the complete image."""
    body = encode_jpeg(smooth_image(100, 120))
    transforms: list[TrainTransform | EvalTransform] = [
        TrainTransform(image_size=64),
        TrainTransform(image_size=(24, 48), scale=(0.05, 0.1)),
        TrainTransform(image_size=24, scale=(0.05, 0.1)),
        EvalTransform(image_size=56, crop_ratio=0.875),
    ]
    for position in range(6):
        keys = [DrawKey(3, position, view) for view in range(4)]
        for count in (1, 3, 4):
            views = decode_views(body, transforms[:count], keys[:count])
            for view, transform, key in zip(views, transforms, keys, strict=False):
                np.testing.assert_array_equal(view, decode_image(body, transform, key))


def test_views_share_the_size_at_which_all_keep_their_pixels() -> None:
    """A large crop alone is decoded at a quarter of the size, beside a small one in full."""
    body = encode_jpeg(smooth_image(400, 400))
    large, small = (TrainTransform(image_size=16, scale=(share, share), flip_prob=0) for share in (0.9, 0.01))
    keys = [DrawKey(0, 0), DrawKey(0, 0, 1)]
    first, second = decode_views(body, [large, small], keys)
    assert first.shape == second.shape == (3, 16, 16)
    np.testing.assert_array_equal(second, decode_image(body, small, keys[1]))
    geometry = large.geometry(400, 400, keys[0])
    assert geometry.factor == 4
    in_full = decode_pixels(body)[geometry.source.slices_in(Crop(0, 0, 400, 400))]
    np.testing.assert_array_equal(first, resize(in_full, geometry))
    assert not np.array_equal(first, decode_image(body, large, keys[0]))
    assert stack_views([first, second]).strides == (768, 1, 48, 3)
    np.testing.assert_array_equal(stack_views([first, second]), np.stack([first, second]))


def test_channels_stay_last_in_memory() -> None:
    """Otherwise the resize takes a third longer, and the copy into a batch ten times as long."""
    body = encode_jpeg(smooth_image(100, 120))
    for transform in (TrainTransform(image_size=(24, 32)), EvalTransform(image_size=(24, 32))):
        assert decode_image(body, transform, DrawKey(0, 1)).strides == (1, 96, 3)
