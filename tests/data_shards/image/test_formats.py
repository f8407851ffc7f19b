"""What is decoded at all: formats by content, whole files, bounded sizes, one class of error for the rest."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from data_shards.errors import DataError
from data_shards.format.samples import BadSourceError
from data_shards.image import formats, pillow
from data_shards.image.decode import decode_image
from data_shards.image.geometry import EvalTransform
from data_shards.image.pixels import decode_pixels, image_size
from data_shards.pack.reencode import CHECKS, Recipe, prepare
from tests.data_shards.image.image_files import (
    MODES,
    RGB,
    H,
    W,
    animation,
    chunk,
    png,
    samples,
    saved,
    saved_array,
    tiff,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged metadata
SAMPLES = samples()
SAVES = {
    "PNG": ("1", "L", "P", "LA", "RGB", "RGBA"),
    "WEBP": ("L", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": MODES,
    "AVIF": ("L", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
}


def by_pillow(body: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind in SAVES for mode in SAVES[kind]])
def test_8_bit_images_are_pillows_bit_for_bit(kind: str, mode: str) -> None:
    body = saved(kind, mode)
    assert image_size(body) == (H, W)
    np.testing.assert_array_equal(decode_pixels(body), by_pillow(body))


@pytest.mark.parametrize("transparency", [3, bytes(range(200))])
def test_a_palette_with_transparency_keeps_its_colors(transparency: int | bytes) -> None:
    body = saved("PNG", "P", transparency=transparency)
    np.testing.assert_array_equal(decode_pixels(body), by_pillow(saved("PNG", "P")))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_decoded(kind: str) -> None:
    np.testing.assert_array_equal(decode_pixels(animation(kind)), by_pillow(animation(kind)))


OTHERS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n{} loop\nshowpage\n",
    "EPS in DOS binary": b"\xc5\xd0\xd3\xc6" + bytes(28) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "WMF": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(40),
    "EMF": b"\x01\x00\x00\x00" + bytes(36) + b" EMF" + bytes(60),
    "DDS": b"DDS " + (124).to_bytes(4, "little") + bytes(120),
    "PFM": b"Pf\n2 2\n-1.0\n" + bytes(16),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "HTML": b"<!DOCTYPE html><html></html>",
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(12),
    "empty": b"",
    **{kind: saved(kind) for kind in ("ICO", "TGA", "SGI", "PCX", "IM", "JPEG2000", "PDF", "DIB")},
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_format_is_opened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow, "open_image", None)
    for read in (decode_pixels, image_size):
        with pytest.raises(
            DataError, match=r"undecodable image of \d+ bytes \(it begins with b'.*the formats"
        ):
            read(OTHERS[name])


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_cut_short_anywhere_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another library asked of Pillow; only from the last number of a text may digits go."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    body = SAMPLES[name]
    whole = decode_pixels(body)
    assert whole.shape[:2] == image_size(body) == (H, W)
    for size in sorted({*range(0, len(body), max(1, len(body) // 50)), *range(len(body) - 20, len(body))}):
        if name in ("P1", "P2", "P3") and b" " not in body[size - 1 :]:
            continue
        with pytest.raises(DataError, match=f"undecodable image of {size} bytes"):
            decode_pixels(body[:size])


@pytest.mark.parametrize("name", SAMPLES)
def test_every_damaged_file_is_pixels_or_a_data_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (formats, pillow):  # so that no large image is made of a damaged header
        monkeypatch.setattr(module, "MAX_PIXELS", 10_000)
    generator, body = np.random.default_rng(5), SAMPLES[name]
    places = [*range(min(64, len(body))), *generator.integers(0, len(body), 90).tolist()]
    for place in places:
        damaged = bytearray(body)
        damaged[place] ^= int(generator.integers(1, 256))
        try:
            pixels = decode_pixels(bytes(damaged))
            assert pixels.dtype == np.uint8
            assert pixels.shape[:2] == image_size(bytes(damaged))
            assert pixels.shape[2] in (1, 3)
        except DataError:
            pass


@pytest.mark.parametrize(
    "error",
    [IndexError("a"), MemoryError(), zlib.error("b"), OverflowError(), RecursionError("c"), KeyError(1)],
)
@pytest.mark.parametrize("read", [decode_pixels, image_size])
def test_whatever_a_decoder_raises_is_a_data_error(
    error: Exception, read: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pillow, "open_image", fail)
    reason = str(error) or type(error).__name__
    with pytest.raises(DataError, match=rf"undecodable image of \d+ bytes \({reason}\)"):
        read(SAMPLES["WebP"])  # type: ignore[operator]


def resized(name: str, height: int, width: int) -> bytes:
    """A sample whose header claims another size."""
    body = bytearray(SAMPLES[name])
    if name == "PNG":
        return png(RGB, 2, 8).replace(
            chunk(b"IHDR", png(RGB, 2, 8)[16:29]),
            chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"),
        )
    if name == "JPEG":
        at = body.index(b"\xff\xc0") + 5
        body[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    if name == "GIF":
        body[6:10] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    if name == "BMP":
        body[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    if name == "TIFF 16":
        return (
            tiff(np.broadcast_to(np.uint16(0), (height, 1))[:1])
            .replace(
                b"\x01\x01\x04\0\x01\0\0\0\x01\0\0\0",
                b"\x01\x01\x04\0\x01\0\0\0" + height.to_bytes(4, "little"),
            )
            .replace(
                b"\0\x01\x04\0\x01\0\0\0\x01\0\0\0", b"\0\x01\x04\0\x01\0\0\0" + width.to_bytes(4, "little")
            )
        )
    if name == "P6":
        return f"P6 {width} {height} 255\n".encode() + bytes(100)
    return bytes(body)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "BMP", "TIFF 16", "P6"])
def test_too_many_pixels_are_refused_from_the_header(name: str) -> None:
    body = resized(name, 50_000, 60_000)
    for read in (image_size, decode_pixels):
        with pytest.raises(DataError, match="50000 x 60000 pixels; at most 178956970 pixels an image are"):
            read(body)
    assert image_size(resized(name, 13_000, 13_000)) == (13_000, 13_000)


def test_a_strip_is_not_blown_up_to_more_pixels_than_an_image_may_have() -> None:
    body = saved_array("PNG", np.zeros((1, 100_000), np.uint8))
    assert decode_image(body, EvalTransform(image_size=16)).shape == (3, 16, 16)
    with pytest.raises(DataError, match=r"1 x 100000 .*256 x 25600000 pixels.*eval_crop=1.0"):
        decode_image(body, EvalTransform(image_size=224, crop_ratio=0.875))


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there `count` times more."""
    body = saved("JPEG", progressive=True)
    last = body.rindex(b"\xff\xda")
    return body[:-2] + body[last:-2] * count + body[-2:]


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused() -> None:
    assert decode_pixels(scans(50)).shape == (H, W, 3)
    with pytest.raises(DataError, match=r"a progressive JPEG of 50\d\d scans; at most 100 are decoded"):
        decode_pixels(scans(5000))


def test_a_bomb_in_a_text_chunk_is_not_inflated() -> None:
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))
    np.testing.assert_array_equal(decode_pixels(png(RGB, 2, 8, extra=bomb)), RGB)


@pytest.mark.parametrize("check", CHECKS[:2])
@pytest.mark.parametrize("name", ["EPS", "HTML", "empty"])
def test_pack_leaves_out_what_is_no_image(check: str, name: str) -> None:
    with pytest.raises(BadSourceError, match="it begins with"):
        prepare(OTHERS[name], Recipe(check=check))


def test_pack_leaves_out_what_cannot_be_encoded() -> None:
    body = saved_array("PNG", np.zeros((2, 140_000), np.uint8))  # JPEG has at most 65,535 columns
    with pytest.raises(BadSourceError, match="2 x 140000 pixels cannot be encoded as JPEG"):
        prepare(body, Recipe(short_side=1, quality=90))


def test_the_formats_are_those_of_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "shards.md").read_text()
    assert ", ".join(formats.FORMATS) in text
    assert f"{formats.MAX_PIXELS:,}" in text
