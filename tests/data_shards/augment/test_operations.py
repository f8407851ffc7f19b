"""Every operation against PIL: tables bit for bit, blends and warps within a stated tolerance."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from data_shards.augment.operations import operate
from data_shards.augment.randaugment import ImageOp

SIZES = [(40, 56), (57, 31), (2, 9), (1, 1)]  # height, width
FILL = (124, 116, 104)
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FACTORS = (0.1, 0.19, 0.5, 0.999, 1.0, 1.37, 1.81, 1.9)
SAME = {
    ImageOp.AUTO_CONTRAST: lambda image, _: ImageOps.autocontrast(image),
    ImageOp.EQUALIZE: lambda image, _: ImageOps.equalize(image),
    ImageOp.INVERT: lambda image, _: ImageOps.invert(image),
    ImageOp.POSTERIZE: lambda image, bits: ImageOps.posterize(image, int(bits)),
    ImageOp.SOLARIZE: lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    ImageOp.SOLARIZE_ADD: lambda image, add: image.point(
        [min(255, i + int(add)) if i < 128 else i for i in range(256)] * 3
    ),
    ImageOp.BRIGHTNESS: lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    ImageOp.CONTRAST: lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
}
BLENDS = {
    ImageOp.COLOR: lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    ImageOp.SHARPNESS: lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
}
ARGUMENTS = {
    ImageOp.POSTERIZE: (1, 2, 3, 4),
    ImageOp.SOLARIZE: (0, 1, 26, 128, 255, 256),
    ImageOp.SOLARIZE_ADD: (0, 99, 110, 128),
    **dict.fromkeys((ImageOp.BRIGHTNESS, ImageOp.CONTRAST, ImageOp.COLOR, ImageOp.SHARPNESS), FACTORS),
}


def images(height: int, width: int) -> Tensor:
    """(12, 3, H, W) uint8: noise, narrow ranges, few values, flat, ramps and soft spots."""
    generator = np.random.default_rng(5)
    full = (3, height, width)
    y, x = np.mgrid[0:height, 0:width]
    soft = [np.stack([127 + 100 * np.sin(x / a + c) * np.cos(y / a) for c in range(3)]) for a in (3, 7, 20)]
    narrow = [generator.integers(low, high, full) for low, high in ((0, 256), (90, 130), (200, 256), (5, 7))]
    rare = np.full(full, 40)
    rare[:, 0, :3] = (0, 41, 255)[:width]  # so few others that equalize finds no step
    flat = [np.full(full, value) for value in (0, 77, 255)]
    mixed = np.stack([np.full((height, width), 9), x * 4, generator.integers(0, 256, (height, width))])
    return torch.from_numpy(np.stack([*soft, *narrow, rare, *flat, mixed]).astype(np.uint8))


def by_pil(batch: Tensor, act: object, argument: float) -> np.ndarray:
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch]
    return np.stack([np.asarray(act(image, argument)) for image in images]).transpose(0, 3, 1, 2)


def by_us(batch: Tensor, op: ImageOp, argument: float, resample: str = "bilinear") -> np.ndarray:
    ours, count = batch.clone(), len(batch)
    fill = torch.tensor(FILL, dtype=torch.uint8)
    operate(ours, torch.full((count,), int(op)), torch.full((count,), float(argument)), fill, resample)
    return ours.numpy()


@pytest.mark.parametrize("sides", SIZES)
@pytest.mark.parametrize("op", SAME, ids=lambda op: op.name)
def test_tables_are_pils_bit_for_bit(op: ImageOp, sides: tuple[int, int]) -> None:
    batch = images(*sides)
    for argument in ARGUMENTS.get(op, (0,)):
        argument = float(np.float32(argument))
        np.testing.assert_array_equal(by_us(batch, op, argument), by_pil(batch, SAME[op], argument))


@pytest.mark.parametrize("sides", SIZES)
@pytest.mark.parametrize("op", BLENDS, ids=lambda op: op.name)
def test_blends_are_within_one_level(op: ImageOp, sides: tuple[int, int]) -> None:
    batch = images(*sides)
    for factor in FACTORS:
        factor = float(np.float32(factor))
        ours, theirs = by_us(batch, op, factor), by_pil(batch, BLENDS[op], factor)
        assert np.abs(ours.astype(int) - theirs).max() <= 1
        assert np.mean(ours != theirs) < 1e-3


def rotated(image: Image.Image, degrees: float, mode: Image.Resampling) -> Image.Image:
    return image.rotate(degrees, resample=mode, fillcolor=FILL)


def mapped(image: Image.Image, matrix: tuple[float, ...], mode: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=mode, fillcolor=FILL)


WARPED = {
    ImageOp.ROTATE: (rotated, (27.0, -13.3, 30.0, 0.5)),
    ImageOp.SHEAR_X: (lambda image, v, mode: mapped(image, (1, v, 0, 0, 1, 0), mode), (0.27, -0.3, 0.011)),
    ImageOp.SHEAR_Y: (lambda image, v, mode: mapped(image, (1, 0, 0, v, 1, 0), mode), (0.27, -0.3, 0.011)),
    ImageOp.TRANSLATE_X: (lambda image, v, mode: mapped(image, (1, 0, v, 0, 1, 0), mode), (17.3, -21.6, 3.0)),
    ImageOp.TRANSLATE_Y: (lambda image, v, mode: mapped(image, (1, 0, 0, 0, 1, v), mode), (17.3, -21.6, 3.0)),
}


@pytest.mark.parametrize("sides", SIZES[:3])
@pytest.mark.parametrize("op", WARPED, ids=lambda op: op.name)
def test_bilinear_warps_are_within_one_level(op: ImageOp, sides: tuple[int, int]) -> None:
    (act, arguments), batch = WARPED[op], images(*sides)
    for argument in arguments:
        argument = float(np.float32(argument))
        theirs = by_pil(batch, lambda image, v: act(image, v, RESAMPLING["bilinear"]), argument)
        difference = np.abs(by_us(batch, op, argument).astype(int) - theirs)
        assert np.mean(difference > 1) < 2e-4, argument  # a source point on the very edge may fall either way
        assert np.mean(difference > 0) < 0.05, argument


@pytest.mark.parametrize("sides", SIZES[:3])
@pytest.mark.parametrize("op", WARPED, ids=lambda op: op.name)
def test_bicubic_warps_of_soft_images_are_pils_at_50_db(op: ImageOp, sides: tuple[int, int]) -> None:
    # PIL's cubic has a = -1, torch's a = -3/4 (Keys 1981, equation 8)
    (act, arguments), soft = WARPED[op], images(*sides)[:3]
    for argument in arguments:
        theirs = by_pil(soft, lambda image, v: act(image, v, RESAMPLING["bicubic"]), argument)
        difference = by_us(soft, op, argument, "bicubic").astype(int) - theirs
        db = 10 * np.log10(255**2 / max(np.mean(difference**2), 1e-9))
        assert db > 50
        assert np.abs(difference).max() <= 2


def test_each_image_has_its_own_operation_and_nothing_is_left_alone() -> None:
    batch = images(*SIZES[0])[[0, 1, 3, 11]].repeat(4, 1, 1, 1)  # 16 images, one an operation
    arguments = torch.tensor([0, 0, 0, 20.0, 2, 26, 99, 1.5, 0.3, 1.7, 1.9, 0.2, -0.2, 9.5, -4.0, 7.0])
    together, alone = batch.clone(), batch.clone()
    fill = torch.tensor(FILL, dtype=torch.uint8)
    operate(together, torch.arange(16), arguments, fill, "bicubic")
    for row in range(16):
        operate(alone[row : row + 1], torch.tensor([row]), arguments[row : row + 1], fill, "bicubic")
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    changed = (together != batch).flatten(1).any(1)
    assert changed[:15].all()
    assert not changed[ImageOp.NOTHING]
