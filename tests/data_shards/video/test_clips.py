"""Which frames a clip has, against the published numbers and against rules that are written out in loops."""

import random
from typing import Any

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey
from data_shards.video.clips import ClipSampling

UNIFORM = ClipSampling(mode="uniform", clips=4)


def keys(count: int) -> list[DrawKey]:
    return [DrawKey(3, position) for position in range(count)]


@pytest.mark.parametrize(
    ("count", "starts"),
    [(300, [29, 88, 148, 207]), (250, [23, 70, 116, 163]), (64, [0, 0, 0, 0]), (63, [0] * 4), (5, [0] * 4)],
)
def test_test_clips_start_where_the_published_ones_do(count: int, starts: list[int]) -> None:
    clips = UNIFORM.indices(count)
    assert clips[:, 0].tolist() == starts
    assert clips.tolist() == [[(start + 2 * i) % count for i in range(32)] for start in starts]


def test_starts_are_those_of_mmaction2_for_every_length() -> None:
    for clips in (1, 2, 3, 4, 10):
        sampling = ClipSampling(mode="uniform", clips=clips, frames=8, interval=4)
        for count in range(32, 400):
            average = (count - 32 + 1) / float(clips)  # of its _get_test_clips
            expected = (np.arange(clips) * average + average / 2.0).astype(int)
            assert sampling.indices(count)[:, 0].tolist() == expected.tolist()


def test_random_starts_are_uniform_from_the_first_to_the_last() -> None:
    sampling = ClipSampling(frames=4, interval=2)
    clips = [sampling.indices(12, key=key)[0] for key in keys(2000)]
    starts = np.array([clip[0] for clip in clips])
    assert set(starts.tolist()) == {0, 1, 2, 3, 4}  # 12 - 4 x 2 = 4 is the last
    assert all((clip == clip[0] + [0, 2, 4, 6]).all() for clip in clips)
    counts = np.bincount(starts)
    assert ((counts - 400) ** 2 / 400).sum() < 18.5  # chi-square with 4 degrees of freedom, p = 0.001


def test_a_draw_is_a_function_of_its_key() -> None:
    sampling = ClipSampling(frames=4, interval=1)
    found = [sampling.indices(500, key=key)[0, 0] for key in (*keys(20), *keys(20))]
    assert found[:20] == found[20:]
    assert len(set(found[:20])) > 15
    assert sampling.indices(500, key=DrawKey(4, 0))[0, 0] != found[0]


@pytest.mark.parametrize("count", [1, 5, 7, 8])
def test_a_short_video_begins_again(count: int) -> None:
    for key in (None, *keys(3)):
        expected = [(2 * i) % count for i in range(4)]
        assert ClipSampling(frames=4, interval=2).indices(count, key=key).tolist() == [expected]


@pytest.mark.parametrize("count", [1, 2, 5, 31, 32, 33, 50, 117])
def test_segments(count: int) -> None:
    sampling = ClipSampling(frames=8, mode="segments")
    ends = [round((count - 1) / 8 * i) for i in range(9)]
    middle = [(low + high) // 2 for low, high in zip(ends[:-1], ends[1:], strict=True)]
    assert sampling.indices(count).tolist() == [middle]
    seen: list[set[int]] = [set() for _ in range(8)]
    for key in keys(400):
        for segment, frame in zip(seen, sampling.indices(count, key=key)[0].tolist(), strict=True):
            segment.add(frame)
    assert seen == [set(range(low, high + 1)) for low, high in zip(ends[:-1], ends[1:], strict=True)]


def test_segments_of_a_key_are_drawn_apart() -> None:
    sampling = ClipSampling(frames=16, mode="segments")
    shares = {int(f) - 10 * i for i, f in enumerate(sampling.indices(161, key=DrawKey(0, 0))[0])}
    assert len(shares) > 3


@pytest.mark.parametrize("rate", [12.5, 25.0, 50.0, 30.0])
def test_a_frame_rate_takes_the_nearest_frames(rate: float) -> None:
    sampling = ClipSampling(frames=5, interval=2, mode="uniform", fps=25.0)
    count = 100
    frames = sampling.indices(count, rate)[0]
    # The clip lasts as long in a video of any rate: 4 gaps of 2 frames at 25 a second.
    assert abs((frames[-1] - frames[0]) / rate - 8 / 25) <= 1 / rate
    assert frames.max() < count
    if rate == 25.0:
        assert (
            frames.tolist() == ClipSampling(frames=5, interval=2, mode="uniform").indices(count)[0].tolist()
        )


def test_a_frame_rate_needs_the_video_to_have_one() -> None:
    with pytest.raises(DataError, match="without a frame rate, which fps=25 needs"):
        ClipSampling(fps=25.0).indices(100)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"frames": 0}, r"frames \(0\) must be at least 1"),
        ({"interval": 0}, r"interval \(0\)"),
        ({"clips": 0, "mode": "uniform"}, r"clips \(0\)"),
        ({"mode": "dense"}, "must be one of random, uniform, segments"),
        ({"clips": 4}, r"clips \(4\) must be 1 for mode random; uniform takes several"),
        ({"fps": -1.0}, r"fps \(-1.0\) must be in 0 ... 1000"),
    ],
)
def test_options_are_checked(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        ClipSampling(**options)


def test_every_index_is_one_of_the_video() -> None:
    draw = random.Random(0)
    for _ in range(300):
        mode = draw.choice(["random", "uniform", "segments"])
        sampling = ClipSampling(
            frames=draw.randint(1, 40),
            interval=draw.randint(1, 5),
            mode=mode,  # type: ignore[arg-type]
            clips=draw.randint(1, 5) if mode == "uniform" else 1,
            fps=draw.choice([0.0, 12.0, 30.0]),
        )
        count = draw.randint(1, 150)
        found = sampling.indices(count, draw.uniform(5, 60), draw.choice([None, DrawKey(1, 2)]))
        assert found.shape == (sampling.clips, sampling.frames)
        assert found.min() >= 0
        assert found.max() < count
