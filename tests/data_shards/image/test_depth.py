"""Images of other than 8 bits: every pixel is round(value / largest x 255), or the file is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from data_shards.errors import DataError
from data_shards.image.pixels import decode_pixels, image_size
from tests.data_shards.image.image_files import DEEP, GRAY, RGB, H, W, anymap, png, saved_array, tiff

ALPHA = np.full((H, W, 1), 40_000, np.uint16)


def scaled(values: np.ndarray, maxval: int) -> np.ndarray:
    """In exact integers: floor(value x 255 / maxval + 1/2), as three channels."""
    pixels = (values.astype(np.int64) * 510 + maxval) // (2 * maxval)
    return np.broadcast_to(pixels[:, :, None], (H, W, 3)) if pixels.ndim == 2 else pixels[:, :, :3]


def assert_scaled(body: bytes, values: np.ndarray, maxval: int = 65535) -> None:
    assert image_size(body) == (H, W)
    pixels = decode_pixels(body)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, scaled(values, maxval))


def test_65535_divides_by_257() -> None:
    values = np.array(
        [0, 128, 129, 257, 385, 386, 65406, 65407, 65535]
    )  # 128 / 257 = 0.498, 129 / 257 = 0.502
    assert ((values * 510 + 65535) // 131070).tolist() == [0, 0, 1, 1, 1, 2, 254, 255, 255]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("color", [0, 2, 4, 6])
def test_png_of_16_bits(color: int, interlaced: bool) -> None:
    values = GRAY if color in (0, 4) else DEEP
    stored = np.concatenate([np.atleast_3d(values), ALPHA], -1) if color in (4, 6) else values
    assert_scaled(png(stored, color, 16, interlaced=interlaced), values)


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "I;16"), ("PNG", "I;16B"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("TIFF", "I")]
)
def test_gray_of_16_bits_as_pillow_saves_it(kind: str, mode: str) -> None:
    """From mode I a TIFF has 32 signed bits."""
    file = io.BytesIO()
    values = {"I": np.int32, "I;16": "<u2", "I;16B": ">u2"}[mode]
    Image.fromarray(GRAY.astype(values)).save(file, kind)
    if mode == "I":
        with pytest.raises(DataError, match="signed integer pixels, .*; save it unsigned"):
            decode_pixels(file.getvalue())
    else:
        assert_scaled(file.getvalue(), GRAY)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("rows", [None, 4])
def test_tiff_of_16_bits(order: str, deflated: bool, rows: int | None) -> None:
    options = {"order": order, "deflated": deflated, "rows": rows}
    assert_scaled(tiff(DEEP, **options), DEEP)
    assert_scaled(tiff(GRAY, **options), GRAY)
    assert_scaled(tiff(np.concatenate([DEEP, ALPHA], -1), **options), DEEP)
    assert_scaled(tiff(np.concatenate([DEEP, ALPHA], -1), extra=0, **options), DEEP)


@pytest.mark.parametrize("deflated", [False, True])
def test_tiff_of_16_bits_whose_0_is_white(deflated: bool) -> None:
    assert_scaled(tiff(GRAY, photometric=0, deflated=deflated), 65535 - GRAY)


def test_tiff_of_12_bits() -> None:
    values = GRAY >> 4
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], -1)
    body = tiff(packed.astype(np.uint8).reshape(H, -1), bits=12)
    width = (21).to_bytes(4, "little")  # bytes of a row, which the tag of the width has to be again
    assert body.count(b"\0\x01\x04\0\x01\0\0\0" + width) == 1
    assert_scaled(
        body.replace(b"\0\x01\x04\0\x01\0\0\0" + width, b"\0\x01\x04\0\x01\0\0\0" + W.to_bytes(4, "little")),
        values,
        4095,
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_separate_planes(order: str) -> None:
    np.testing.assert_array_equal(decode_pixels(tiff(RGB, separate=True, rows=3, order=order)), RGB)
    with pytest.raises(DataError, match="separate planes; save it with interleaved channels"):
        decode_pixels(tiff(DEEP, separate=True, order=order))


def test_cmyk_of_16_bits_is_that_of_8() -> None:
    inks = np.concatenate([RGB, RGB[:, :, :1]], -1)
    expected = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))
    np.testing.assert_array_equal(decode_pixels(tiff(inks.astype(np.uint16) * 257, photometric=5)), expected)


@pytest.mark.parametrize("maxval", [1, 3, 100, 254, 255, 256, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_anymaps_of_any_maxval(kind: int, maxval: int) -> None:
    values = (DEEP if kind in (3, 6) else GRAY).astype(int) % (maxval + 1)
    if maxval % 2 == 0:  # halves are rounded to even, as Pillow does: no value here makes one
        values = values - (values * 510 % (2 * maxval) == maxval)
    assert_scaled(anymap(kind, values, maxval), values, maxval)


@pytest.mark.parametrize("kind", [1, 4])
def test_anymaps_of_bits(kind: int) -> None:
    bits = GRAY // 3 % 2
    assert_scaled(anymap(kind, bits), 1 - bits, 1)
    if kind == 1:
        assert_scaled(f"P1 {W} {H}\n".encode() + "".join(map(str, bits.ravel())).encode(), 1 - bits, 1)


@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_anymaps_with_a_value_above_maxval_are_refused(kind: int) -> None:
    values = np.full((H, W, 3) if kind in (3, 6) else (H, W), 7)
    values[3, 4] = 9
    with pytest.raises(DataError, match=r"pixels in 7 ... 9; their range is 0 ... 8"):
        decode_pixels(anymap(kind, values, 8))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflated", [False, True])
def test_floats_of_0_to_1_are_scaled(order: str, deflated: bool) -> None:
    values = GRAY.astype(np.float32) / 65535
    pixels = decode_pixels(tiff(values, order=order, deflated=deflated))
    np.testing.assert_array_equal(pixels[:, :, 0], np.rint(values * 255))
    assert (decode_pixels(tiff(np.zeros((H, W), np.float32))) == 0).all()
    assert (decode_pixels(tiff(np.ones((H, W), np.float32))) == 255).all()


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, np.nan, np.inf, -np.inf])
def test_other_floats_are_refused(value: float) -> None:
    values = np.full((H, W), 0.5, np.float32)
    values[5, 6] = value
    with pytest.raises(DataError, match=r"floating-point pixels in .*; only 0 ... 1 can be scaled to 8 bits"):
        decode_pixels(saved_array("TIFF", values))


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint32, np.float64, np.float16, np.int8])
def test_other_numbers_are_refused(kind: type) -> None:
    with pytest.raises(DataError, match="undecodable image"):
        decode_pixels(tiff(np.arange(H * W).reshape(H, W).astype(kind)))
