"""The reader torchcodec, where that package and FFmpeg's libraries are installed: the frames of PyAV's."""

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey
from data_shards.image.geometry import TrainTransform
from data_shards.stream.clips import TrainClips
from data_shards.video.clips import ClipSampling
from data_shards.video.readers import READERS
from tests.data_shards.video.test_decode import CODECS, COUNT, numbers
from tests.data_shards.videos import coded_video, sound_file


@pytest.fixture(autouse=True)
def torchcodec() -> None:
    """Skip without it: it raises RuntimeError where libraries of FFmpeg are missing."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError):
        pytest.skip("pip install torchcodec, with FFmpeg's libraries")


def read(body: bytes, reader: str, indices: list[int]) -> tuple[np.ndarray, int, float]:
    """Frames, the number of frames of the video, and their rate."""
    with READERS[reader](body) as video:
        return video.read(indices), len(video), video.rate


@pytest.mark.parametrize("name", CODECS)
def test_every_frame_is_the_one_of_pyav(name: str) -> None:
    """By its number, in any order and twice; as many frames, at the same rate."""
    codec, container, b_frames, options = CODECS[name]
    sides = (64, 64) if codec == "libx265" else (32, 48)
    for variable in (False, True) if container != "avi" else (False,):
        body = coded_video(
            COUNT,
            codec=codec,
            container=container,
            gop=5,
            b_frames=b_frames,
            options=options,
            variable=variable,
            sides=sides,
        )
        wanted = [7, 2, 7, *range(COUNT)]
        ours, count, rate = read(body, "pyav", wanted)
        theirs, their_count, their_rate = read(body, "torchcodec", wanted)
        assert numbers(theirs) == numbers(ours) == wanted
        assert their_count == count == COUNT
        assert their_rate == pytest.approx(rate, rel=0.1)  # by the duration of the last frame
        assert np.abs(theirs.astype(int) - ours).mean() < 4  # levels: the colours of another FFmpeg


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_of_the_metadata_is_applied(rotation: int) -> None:
    body = coded_video(5, rotation=rotation)
    ours, theirs = (read(body, reader, [1, 3])[0] for reader in ("pyav", "torchcodec"))
    assert theirs.shape == ours.shape
    assert np.abs(theirs.astype(int) - ours).mean() < 4


def test_clips_have_the_frames_of_their_draws() -> None:
    sampling, whole = (
        ClipSampling(frames=5, interval=3),
        TrainTransform(image_size=(32, 48), scale=(1.0, 1.0), ratio=(1.5, 1.5), flip_prob=0.0),
    )
    members = {"video": coded_video(30), "label": 1}
    for key in (DrawKey(0, 0), DrawKey(0, 1)):
        ours, theirs = (
            TrainClips(sampling=sampling, geometry=whole, reader=reader)(members, key)["clip"]
            for reader in ("pyav", "torchcodec")
        )
        assert np.abs(ours.astype(int) - theirs).mean() < 4


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no video of MP4"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no video of MP4"),
        (b"#EXTM3U\nhttp://127.0.0.1/x.ts\n", "no video of MP4"),
        (coded_video(20)[:900], "torchcodec cannot read"),
        (sound_file(), "torchcodec cannot read"),
    ],
)
def test_what_is_no_video_is_one_line(body: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read(body, "torchcodec", [0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("indices", [[20], [-1], []])
def test_a_frame_beyond_the_video_is_refused(indices: list[int]) -> None:
    with pytest.raises(DataError, match=r"of a video with frames 0 ... 19"):
        read(coded_video(20), "torchcodec", indices)
