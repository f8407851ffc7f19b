"""Exactly the frames that are asked for: each frame says its number, for every index and every start."""

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.video.container import opened
from data_shards.video.decode import count_frames, decode_frames
from tests.data_shards.videos import coded_video, number_of, times_of

COUNT = 23
VP9 = (("cpu-used", "8"), ("lag-in-frames", "8"))
CODECS = {  # encoder, container, B-frames, options
    "h264": ("libx264", "mp4", 3, ()),
    "h264, open groups": ("libx264", "mp4", 4, (("x264-params", "open-gop=1:scenecut=0"),)),
    "h264, Matroska": ("libx264", "matroska", 2, ()),
    "mpeg4": ("mpeg4", "mp4", 2, ()),
    "mpeg4, AVI": ("mpeg4", "avi", 0, ()),
    "hevc": ("libx265", "mp4", 3, (("x265-params", "scenecut=0:log-level=none:pools=none:frame-threads=1"),)),
    "vp9": ("libvpx-vp9", "mp4", 0, VP9),
    "vp9, WebM": ("libvpx-vp9", "webm", 0, VP9),
}


def numbers(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def check_every_index_and_start(body: bytes) -> None:
    """Single frames, and clips from every start: their numbers, and the pixels of a complete decode."""
    every = decode_frames(body, range(COUNT))
    assert numbers(every) == list(range(COUNT))
    for index in range(COUNT):
        assert np.array_equal(decode_frames(body, [index])[0], every[index]), index
    for start in range(COUNT):
        assert np.array_equal(decode_frames(body, range(start, COUNT, 3)), every[start::3]), start


@pytest.mark.parametrize("gop", [1, 5, 12])
@pytest.mark.parametrize("name", CODECS)
def test_every_index_and_start(name: str, gop: int) -> None:
    codec, container, b_frames, options = CODECS[name]
    for variable in (False, True) if container != "avi" else (False,):
        check_every_index_and_start(
            coded_video(
                COUNT,
                codec=codec,
                container=container,
                gop=gop,
                b_frames=b_frames,
                options=options,
                variable=variable,
                sides=(64, 64) if codec == "libx265" else (32, 48),  # the least that x265 takes
            )
        )


def test_av1_of_a_decoder_that_works_ahead() -> None:
    body = coded_video(COUNT, codec="libsvtav1", gop=9, options=(("preset", "12"),), sides=(64, 64))
    check_every_index_and_start(body)


@pytest.mark.parametrize("sides", [(33, 47), (34, 46)])
def test_odd_sizes(sides: tuple[int, int]) -> None:
    body = coded_video(9, sides=sides, codec="libvpx-vp9" if sides[0] % 2 else "libx264")
    assert decode_frames(body, [8, 0]).shape == (2, *sides, 3)
    assert numbers(decode_frames(body, [8, 0, 3])) == [8, 0, 3]


def test_any_order_and_twice() -> None:
    body = coded_video(20)
    assert numbers(decode_frames(body, [7, 2, 7, 19, 0, 2])) == [7, 2, 7, 19, 0, 2]


def test_key_frames() -> None:
    with opened(coded_video(20, codec="mpeg4", b_frames=0)) as packets:
        assert [packets.listed[place].is_keyframe for place in packets.places] == [
            i % 8 == 0 for i in range(20)
        ]
        assert packets.keys == (0, 8, 16)
        assert len(packets) == 20


def test_time_stamps_decide_not_the_order_in_the_file() -> None:
    with opened(coded_video(20, variable=True)) as packets:
        stamps = [round(1000 * time * packets.unit) for time in packets.times]
        in_file = [packet.pts for packet in packets.listed]
    assert stamps == times_of(20, variable=True)
    assert in_file != sorted(in_file)  # so B-frames are there


def test_an_edit_list_hides_frames() -> None:
    # The only edit begins at media time 5 x 40 ms: a player shows frames 5 ... 19.
    body = bytearray(coded_video(20, codec="mpeg4", b_frames=0, gop=8))
    at = body.index(b"elst") + 4  # version and flags, count, then duration, media time, rate
    with opened(bytes(body)) as packets:
        unit = packets.unit
    assert int.from_bytes(body[at + 4 : at + 8], "big") == 1
    body[at + 12 : at + 16] = int(0.2 / unit).to_bytes(4, "big")
    assert count_frames(bytes(body)) == 15
    assert numbers(decode_frames(bytes(body), range(15))) == list(range(5, 20))
    assert numbers(decode_frames(bytes(body), [2])) == [7]


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_of_the_metadata_is_applied(rotation: int, turns: int) -> None:
    upright, turned = coded_video(5), coded_video(5, rotation=rotation)
    expected = np.rot90(decode_frames(upright, [1, 3]), turns, axes=(1, 2))  # counterclockwise
    assert np.array_equal(decode_frames(turned, [1, 3]), expected)


def test_another_rotation_is_refused() -> None:
    with pytest.raises(DataError, match="turns by 45 degrees; only multiples of 90"):
        decode_frames(coded_video(5, rotation=45), [0])


@pytest.mark.parametrize("indices", [[20], [-1], []])
def test_a_frame_beyond_the_video_is_refused(indices: list[int]) -> None:
    with pytest.raises(DataError, match=r"of a video with frames 0 ... 19"):
        decode_frames(coded_video(20), indices)


def test_a_damaged_frame_is_named_and_another_is_read() -> None:
    body = bytearray(coded_video(20, codec="libx264", b_frames=0))
    with opened(bytes(body)) as packets:
        packet = packets.listed[10]
        at, size = packet.pos, packet.size
    body[at : at + size] = bytes(size)
    assert numbers(decode_frames(bytes(body), [3, 17])) == [3, 17]  # from key frames 0 and 16
    with pytest.raises(DataError) as caught:
        decode_frames(bytes(body), [12])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no video of MP4, Matroska, WebM or AVI"),
        (b"\xff\xd8\xff\xe0" + bytes(60), "a JPEG image"),
        (b"#EXTM3U\nhttp://127.0.0.1/x.ts\n", "no video of MP4"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no video of MP4"),
        (b"\0\0\0\x20ftypisom" + bytes(20), "without its box b?.moov"),
    ],
)
def test_what_is_no_video_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_frames(body, [0])


def test_a_cut_file_is_said_to_be_cut() -> None:
    """An MP4 has its index at the end, which leaves no stream; of Matroska the last frame is lost."""
    body = coded_video(20)
    with pytest.raises(DataError, match="an MP4 that is cut short or damaged: box b'moov'"):
        decode_frames(body[: len(body) * 2 // 3], [0])
    with pytest.raises(DataError, match="a Matroska or WebM file that is cut short"):
        decode_frames(coded_video(20, container="matroska")[:600], [19])


def test_damage_never_raises_anything_else() -> None:
    rng, body, refused = np.random.default_rng(0), coded_video(12), 0
    for _ in range(150):
        damaged = bytearray(body[: int(rng.integers(1, len(body) + 1))])
        damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
        try:
            decode_frames(bytes(damaged), range(12))
        except DataError:
            refused += 1
    assert refused > 75


def test_threads_decode_at_the_same_time() -> None:
    from concurrent.futures import ThreadPoolExecutor

    body = coded_video(20)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda start: numbers(decode_frames(body, range(start, 20, 2))), list(range(20)) * 3)
    assert list(found) == [list(range(start, 20, 2)) for start in range(20)] * 3
