"""Every codec gives back what it encoded, and refuses what is damaged or of another kind."""

import io
import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_shards.codecs import registry
from data_shards.codecs.registry import CODECS, codec_of, packed_fields
from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_LABEL, Field, check_fields
from data_shards.format.records import RECORD, record_of
from tests.data_shards.videos import coded_video, sound_file


def box(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


BOXES = (  # complete, but no video
    box(b"ftyp", b"isom")
    + box(b"moov", bytes(20))
    + struct.pack(">I", 1)
    + b"mdat"
    + struct.pack(">Q", 26)
    + b"0123456789"
)
MP4 = coded_video(6)
IDS = np.arange(60, dtype=np.uint16).reshape(6, 10)


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        ("label_image", IDS.astype(np.uint8)),
        ("label_image", IDS * 1000),
        ("label_image", np.array([[0, 65535]], np.int64)),
        ("json", {"a": [1, 2.5, None, True], "ü": "\u2028"}),
        ("json", []),
        ("array", np.arange(6, dtype=np.float32).reshape(2, 3)),
        ("array", np.array(3.5)),
        ("array", np.zeros((0, 4), np.int64)),
        ("array", np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3))),
        ("array", np.array([True, False])),
        ("int", -(2**63)),
        ("int", 2**63 - 1),
        ("int", np.int16(-7)),
        ("video", MP4),
    ],
)
def test_round_trips(codec: str, value: Any) -> None:
    body = CODECS[codec].encode(value)
    CODECS[codec].check(body)
    found = CODECS[codec].decode(body)
    np.testing.assert_array_equal(found, value)
    if isinstance(value, np.ndarray) and codec == "array":
        assert (found.dtype, found.shape) == (value.dtype.newbyteorder("<"), value.shape)
    assert CODECS[codec].encode(value) == body


def test_images_round_trip_within_the_loss_of_jpeg() -> None:
    pixels = np.full((16, 24, 3), 90, np.uint8)
    assert np.abs(CODECS["image"].decode(CODECS["image"].encode(pixels)).astype(int) - 90).max() <= 2


def test_arrays_of_other_programs_are_read() -> None:
    """numpy's own files, in both versions and orders, are the independent implementation."""
    for order in "CF":
        for version in ((1, 0), (2, 0)):
            file = io.BytesIO()
            array = np.asarray(np.arange(24).reshape(2, 3, 4), order=order)
            np.lib.format.write_array(file, array, version=version)
            np.testing.assert_array_equal(CODECS["array"].decode(file.getvalue()), array)
    ours = CODECS["array"].encode(np.arange(5, dtype=np.int16))
    np.testing.assert_array_equal(np.load(io.BytesIO(ours)), np.arange(5))


def test_a_palette_keeps_its_indices() -> None:
    image = Image.fromarray(IDS.astype(np.uint8), mode="P")
    image.putpalette(list(range(256)) * 3)
    file = io.BytesIO()
    image.save(file, "PNG")
    np.testing.assert_array_equal(CODECS["label_image"].decode(file.getvalue()), IDS)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return file.getvalue()


NPY = CODECS["array"].encode(np.arange(6.0))


@pytest.mark.parametrize(
    ("codec", "body", "reason"),
    [
        ("label_image", png(np.zeros((2, 2, 3), np.uint8)), "color type 2 of 8 bits"),
        ("label_image", png(np.zeros((2, 2), bool)), "color type 0 of 1 bits"),
        ("label_image", b"\xff\xd8\xff\xe0", "a JPEG; a label image is a PNG"),
        ("json", b"\xff", "no JSON text"),
        ("json", b"[NaN]", "NaN is no JSON number"),
        ("json", b'{"a":1,"a":2}', "a key twice"),
        ("json", b"[" * 100_000, "no JSON text"),
        ("array", pickled(), "its type is object"),
        ("array", NPY[:-1], "needs 48 bytes, not 47"),
        ("array", NPY + b"0", "needs 48 bytes, not 49"),
        ("array", NPY.replace(b"(6,)", b"(-6)"), "no .npy file"),
        ("array", b"\x93NUMPY\x03\x00", "version"),
        ("int", b"1.0", "no integer"),
        ("int", b"9223372036854775808", "no integer of 64 bits"),
        ("int", b"", "no integer"),
        ("video", BOXES[:-1], "cut short or damaged"),
        ("video", BOXES, "a video that cannot be read|without"),
        ("video", MP4[:-1], "cut short or damaged"),
        ("video", sound_file(), "without a video stream: it has audio"),
        ("video", coded_video(6, codec="libvpx", container="webm"), "no MP4"),
        ("video", MP4[4:], "no MP4"),
        ("video", box(b"ftyp") + box(b"moov"), "without its box 'mdat'"),
        ("video", b"", "without its box 'ftyp'"),
        ("video", box(b"ftyp") + bytes(8) + b"abc", "without its box"),
    ],
)
def test_what_is_no_such_file_is_refused(codec: str, body: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        CODECS[codec].check(body)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        ("label_image", np.array([[-1]])),
        ("label_image", np.array([[65536]])),
        ("label_image", np.zeros((2, 2), np.float32)),
        ("json", {"a": float("nan")}),
        ("json", {1: 2}),
        ("json", (1, 2)),
        ("json", np.zeros(2)),
        ("array", np.array([None])),
        ("array", ["text"]),
        ("int", 2**63),
        ("int", 1.0),
        ("int", True),
        ("video", "clip.mp4"),
        ("image", np.zeros((2, 2, 3), np.float32)),
    ],
)
def test_values_that_would_not_come_back_are_refused(codec: str, value: Any) -> None:
    with pytest.raises(DataError):
        CODECS[codec].encode(value)


@pytest.mark.parametrize("codec", ["label_image", "video", "array", "json"])
def test_damaged_files_never_raise_anything_else(codec: str) -> None:
    bodies = {
        "label_image": png(IDS),
        "video": MP4,
        "array": NPY,
        "json": json.dumps({"a": [1, "b"]}).encode(),
    }
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        body = bytearray(bodies[codec][: rng.integers(1, len(bodies[codec]) + 1)])
        body[rng.integers(len(body))] ^= 1 << rng.integers(8)
        try:
            CODECS[codec].check(bytes(body))
        except DataError:
            refused += 1
    assert refused > 100


def test_the_record_of_image_and_label_is_version_1() -> None:
    index = np.array([((512, 7, 2**64 - 1), 3)], dtype=record_of(IMAGE_AND_LABEL))
    # offset u64, size u32, label u32, xxh3 u64, little-endian
    assert index.tobytes() == struct.pack("<QIIQ", 512, 7, 3, 2**64 - 1)
    assert record_of(IMAGE_AND_LABEL) is RECORD
    two = record_of((Field("image", "image"), Field("label", "int"), Field("x", "json")))
    row = np.array([((512, 7, 9), -3, (1, 2, 3))], dtype=two).tobytes()
    assert row == struct.pack("<QIQqQIQ", 512, 7, 9, -3, 1, 2, 3)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([Field("Image", "image")], "a name is lower-case"),
        ([Field("a", "json"), Field("a", "image")], "two members have the name a"),
        ([Field("a", "json", "x.json"), Field("b", "json", "x.json")], "two members have the extension"),
        ([Field("a", "json", "../x")], "must be an extension"),
        ([Field("label", "int")], "needs a member that is a file"),
    ],
)
def test_fields_are_checked(fields: list[Field], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        check_fields(fields)


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(DataError, match="member a: no codec 'flac'; name one of image, label_image"):
        codec_of(Field("a", "flac"))
    assert packed_fields(IMAGE_AND_LABEL) == IMAGE_AND_LABEL


WAV = """
class WavCodec:
    extensions = ("wav",)

    def encode(self, value):
        return b"RIFF" + bytes(value)

    def decode(self, body):
        return list(body[4:])
"""


def test_a_codec_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    metadata = site / "sounds-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sounds\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[swin_moe.codecs]\nwav = sounds_of_a_test:WavCodec\n")
    (site / "sounds_of_a_test.py").write_text(WAV)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(registry, "_installed", cache(registry._installed.__wrapped__))
    field = Field("sound", "wav")
    assert packed_fields([Field("image", "image"), field])[1].extension == "sound.wav"
    assert codec_of(field).decode(codec_of(field).encode([1, 2])) == [1, 2]
