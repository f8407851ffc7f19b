"""What is packed of a video: counted facts, copies and videos encoded again; each bad file is one line."""

import struct

import numpy as np
import pytest

from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.video.container import opened
from data_shards.video.decode import decode_frames
from data_shards.video.facts import VideoFacts, read_facts
from data_shards.video.prepare import VideoRecipe, prepare_video
from data_shards.video.write import copy_packets
from tests.data_shards.videos import coded_video, number_of, sound_file, times_of

COPY, SMALL = VideoRecipe(), VideoRecipe(short_side=16, key_distance=4)
WEBM = {"codec": "libvpx-vp9", "container": "webm", "options": (("cpu-used", "8"),)}


def numbers(body: bytes, count: int) -> list[int]:
    return [number_of(frame) for frame in decode_frames(body, range(count))]


def milliseconds(body: bytes) -> list[int]:
    with opened(body) as packets:
        return [round(1000 * (time - packets.times[0]) * packets.unit) for time in packets.times]


def test_facts_are_counted() -> None:
    assert read_facts(coded_video(20)) == VideoFacts(frames=20, fps_millis=25000, height=32, width=48)
    assert read_facts(coded_video(20)).duration_s == 0.8
    # The last of 20 time stamps is 760 + 19 x (19 % 3 == 2) = 760 ms: 19 gaps.
    assert read_facts(coded_video(20, variable=True)).fps_millis == 25000
    assert read_facts(coded_video(21, variable=True)).fps_millis == round(1e6 * 20 / 819)
    assert read_facts(coded_video(20, rotation=90)) == VideoFacts(
        frames=20, fps_millis=25000, height=48, width=32
    )


def test_an_mp4_is_copied_byte_for_byte() -> None:
    prepared = prepare_video(coded_video(20), COPY)
    assert prepared.body == coded_video(20)
    assert prepared.members() == {
        "video": prepared,
        "frames": 20,
        "fps_millis": 25000,
        "height": 32,
        "width": 48,
    }
    assert CODECS["video"].encode(prepared) == coded_video(20)


@pytest.mark.parametrize(
    ("codec", "container", "options", "sides"),
    [
        ("libvpx-vp9", "webm", (("cpu-used", "8"),), (32, 48)),
        ("libx264", "matroska", (), (32, 48)),
        ("libsvtav1", "matroska", (("preset", "12"),), (64, 64)),
    ],
)
def test_packets_of_another_container_are_copied(
    codec: str, container: str, options: tuple[tuple[str, str], ...], sides: tuple[int, int]
) -> None:
    body = coded_video(20, codec=codec, container=container, options=options, sides=sides, variable=True)
    prepared = prepare_video(body, COPY)
    CODECS["video"].check(prepared.body)
    assert np.array_equal(decode_frames(prepared.body, range(20)), decode_frames(body, range(20)))
    assert milliseconds(prepared.body) == times_of(20, variable=True)


@pytest.mark.parametrize(("container", "codec"), [("avi", "mpeg4"), ("webm", "libvpx")])
def test_what_an_mp4_does_not_hold_is_encoded_again_at_its_size(container: str, codec: str) -> None:
    prepared = prepare_video(coded_video(20, codec=codec, container=container, b_frames=0), COPY)
    CODECS["video"].check(prepared.body)
    assert prepared.facts == VideoFacts(frames=20, fps_millis=25000, height=32, width=48)
    assert numbers(prepared.body, 20) == list(range(20))


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_encoded_again_with_a_short_side_and_key_frames(container: str, variable: bool) -> None:
    source = WEBM if container == "webm" else {}
    body = coded_video(20, gop=100, variable=variable, **source)  # type: ignore[arg-type]
    prepared = prepare_video(body, SMALL)
    facts = prepared.facts
    assert (facts.frames, facts.height, facts.width) == (20, 16, 24)
    assert numbers(prepared.body, 20) == list(range(20))
    assert milliseconds(prepared.body) == times_of(20, variable)
    with opened(prepared.body) as packets:
        gaps = np.diff([*packets.keys, len(packets.listed)])
    assert gaps.max() <= 4
    assert prepared.body == prepare_video(body, SMALL).body


def test_a_small_video_is_not_enlarged_and_sides_are_even() -> None:
    body = coded_video(5, codec="libvpx-vp9", container="webm", sides=(33, 47))
    facts = prepare_video(body, VideoRecipe(short_side=256)).facts
    assert (facts.height, facts.width) == (32, 48)  # half of 33 and 47 rounded to even halves: 16 and 24


def test_a_turned_video_is_turned_where_it_is_encoded() -> None:
    turned = prepare_video(coded_video(5, rotation=90), SMALL)
    assert (turned.facts.height, turned.facts.width) == (24, 16)
    upright = decode_frames(turned.body, [3])
    assert number_of(np.rot90(upright[0], -1)) == 3
    copied = prepare_video(coded_video(5, rotation=90), COPY)
    assert (copied.facts.height, copied.facts.width) == (48, 32)


def empty(body: bytes) -> bytes:
    """The header of a video, and not one frame."""
    with opened(body) as packets:
        return copy_packets(packets.stream, [])


def hole(body: bytes) -> bytes:
    """The file with zeros in the place of the packet of a frame."""
    with opened(body) as packets:
        packet = packets.listed[7]
        at, size = packet.pos, packet.size
    return body[:at] + bytes(size) + body[at + size :]


BAD = {
    "no frame": (empty(coded_video(20)), "without a video stream: it has nothing|without frames"),
    "one frame": (coded_video(1), "a video of 1 frame; a clip needs 2 or more"),
    "cut": (coded_video(20)[:-300], "cut short or damaged: box b'moov'"),
    "cut WebM": (coded_video(20, **WEBM)[:-50], "cut short: it has"),  # type: ignore[arg-type]
    "cut AVI": (
        coded_video(20, codec="mpeg4", container="avi", b_frames=0)[:-50],
        "an AVI that is cut short",
    ),
    "sound": (sound_file(), "without a video stream: it has audio"),
    "a picture": (b"\xff\xd8\xff\xe0" + bytes(100), "no video of MP4, .* a JPEG image"),
    "a web page": (b"<!DOCTYPE html><html>", "an HTML page"),
    "empty": (b"", "an empty file"),
    "too slow": (coded_video(3, times=(0, 20_000, 40_000)), "a video of 0.05 frames per second, which must"),
    "turned by 45 degrees": (coded_video(5, rotation=45), "turns by 45 degrees"),
    "a hole": (hole(coded_video(20, codec="libx264", b_frames=0)), "damaged|cannot be read"),
}


@pytest.mark.parametrize("recipe", [COPY, SMALL], ids=["copy", "encode"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(name: str, recipe: VideoRecipe) -> None:
    body, reason = BAD[name]
    with pytest.raises(DataError, match=reason) as caught:
        prepare_video(body, recipe)
    assert "\n" not in str(caught.value)


def test_a_rate_that_cannot_be_is_refused() -> None:
    body = bytearray(coded_video(4, codec="mpeg4", b_frames=0))
    at = body.index(b"mdhd") + 16  # version and flags, created, modified, units a second
    (units,) = struct.unpack(">I", body[at : at + 4])
    body[at : at + 4] = struct.pack(">I", units * 60)
    with pytest.raises(DataError, match=r"a video of 1500 frames per second, which must be in 0.1 ... 1000"):
        read_facts(bytes(body))


def test_header_does_not_decode_all() -> None:
    body = hole(coded_video(20, codec="libx264", b_frames=0))
    assert prepare_video(body, VideoRecipe(check="header")).facts.frames == 20
    with pytest.raises(DataError):
        CODECS["video"].check(body)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"short_side": 255}, r"--video-side \(255\) must be an even number"),
        ({"key_distance": 0}, r"--video-key-distance \(0\) must be at least 1"),
        ({"crf": 52}, r"--video-crf \(52\) must be in 0 ... 51"),
        ({"check": "all"}, "check must be one of decode, header, none"),
    ],
)
def test_options_are_checked(options: dict[str, int], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        VideoRecipe(**options)  # type: ignore[arg-type]
