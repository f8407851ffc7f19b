"""PNG: one wrong bit anywhere is refused, and every color type, depth and order of lines is Pillow's."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from data_shards.errors import DataError
from data_shards.image.pixels import decode_pixels, image_size
from tests.data_shards.image.image_files import DEEP, GRAY, RGB, H, W, chunk, png, saved

PALETTE = bytes(range(0, 240, 5)) * 16
FORMS = [(0, d) for d in (1, 2, 4, 8)] + [(2, 8)] + [(3, d) for d in (1, 2, 4, 8)] + [(4, 8), (6, 8)]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("color", "depth"), FORMS)
def test_every_form_is_pillows(color: int, depth: int, interlaced: bool) -> None:
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    values = np.concatenate([DEEP, DEEP[::-1]], -1)[:, :, :channels] % 2**depth
    body = png(values, color, depth, interlaced=interlaced, palette=PALETTE if color == 3 else b"")
    assert image_size(body) == (H, W)
    np.testing.assert_array_equal(decode_pixels(body), Image.open(io.BytesIO(body)).convert("RGB"))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (5, 1), (1, 9), (4, 4), (7, 8)])
def test_interlaced_images_of_few_pixels(height: int, width: int) -> None:
    np.testing.assert_array_equal(
        decode_pixels(png(RGB[:height, :width], 2, 8, interlaced=True)), RGB[:height, :width]
    )


def with_everything() -> bytes:
    """Chunks before, between and after the image data, which lies in two parts."""
    body = png(GRAY, 0, 16, extra=chunk(b"gAMA", bytes(4)) + chunk(b"tEXt", b"key\0value"))
    start, data = (
        body.index(b"IDAT"),
        zlib.compress(b"".join(b"\0" + row.tobytes() for row in GRAY.astype(">u2"))),
    )
    parts = chunk(b"IDAT", data[:30]) + chunk(b"IDAT", b"") + chunk(b"IDAT", data[30:])
    return body[: start - 4] + parts + chunk(b"tIME", bytes(7)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "body", [with_everything(), saved("PNG", "P", transparency=1), saved("PNG", optimize=True)]
)
def test_one_wrong_bit_anywhere_is_refused(body: bytes) -> None:
    decode_pixels(body)
    for place in range(len(body)):
        for bit in range(8):
            damaged = bytearray(body)
            damaged[place] ^= 1 << bit
            with pytest.raises(DataError, match="undecodable image"):
                decode_pixels(bytes(damaged))


def test_bytes_behind_the_end_are_ignored() -> None:
    np.testing.assert_array_equal(decode_pixels(png(RGB, 2, 8) + b"junk"), RGB)


LINES = b"".join(b"\0" + row.tobytes() for row in RGB)
SOUND = zlib.compress(LINES)
STREAMS = {
    "Adler-32": SOUND[:-1] + bytes([SOUND[-1] ^ 1]),
    "no Adler-32": SOUND[:-4],
    "half an Adler-32": SOUND[:-2],
    "a line too few": zlib.compress(LINES[: -1 - 3 * W]),
    "a byte too few": zlib.compress(LINES[:-1]),
    "nothing": zlib.compress(b""),
    "no stream": b"",
    "garbage": bytes(range(100)),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_wrong_stream_in_sound_chunks_is_refused(name: str) -> None:
    """Pillow decodes the first three."""
    with pytest.raises(DataError, match="undecodable image"):
        decode_pixels(png(RGB, 2, 8, stream=STREAMS[name]))


def test_more_data_than_the_image_needs_is_ignored_and_not_inflated() -> None:
    bomb = zlib.compress(LINES + bytes(1 << 26))
    np.testing.assert_array_equal(decode_pixels(png(RGB, 2, 8, stream=bomb)), RGB)


@pytest.mark.parametrize(
    ("color", "depth"), [(1, 8), (5, 8), (7, 8), (2, 4), (3, 16), (0, 3), (255, 8), (0, 0)]
)
def test_forms_that_do_not_exist_are_refused(color: int, depth: int) -> None:
    body = png(RGB, 2, 8)
    header = W.to_bytes(4, "big") + H.to_bytes(4, "big") + bytes([depth, color, 0, 0, 0])
    with pytest.raises(DataError, match="undecodable image"):
        decode_pixels(body[:8] + chunk(b"IHDR", header) + body[33:])
