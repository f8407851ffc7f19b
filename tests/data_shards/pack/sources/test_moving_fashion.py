"""Moving fashion: the torus is exact, the label the direction, which only the order of frames tells."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.format.samples import Source
from data_shards.pack.sources import moving_fashion as module
from data_shards.pack.sources.garments import enlarge
from data_shards.pack.sources.moving_fashion import (
    DIRECTIONS,
    ENCODER,
    STEPS,
    Motion,
    MotionOptions,
    MovingSamples,
    draw,
    encode,
    moving_fashion,
)
from data_shards.pack.write import pack
from data_shards.stream.reader import ShardReader
from data_shards.video.container import opened
from data_shards.video.decode import decode_frames
from data_shards.video.facts import read_facts
from data_shards.video.write import i420, padded_mp4
from tests.data_shards.pack.sources.fashion_files import write_garments

OPTIONS = MotionOptions(side=32, frames=6, speed=(1, 3), garment=(12, 20), background="stripes")


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fashion")
    write_garments(directory)
    return directory


def samples(garments: Path, count: int = 64, seed: int = 0, split: str = "train") -> MovingSamples:
    found = moving_fashion(garments, count, 16, OPTIONS, seed).splits[split]
    assert isinstance(found, MovingSamples)
    return found


def test_every_frame_is_the_first_one_with_its_garment_moved_round(garments: Path) -> None:
    videos = samples(garments)
    for i in range(16):
        frames, motion = videos.frames(i), videos.motion(i)
        step = motion.step
        assert np.sign(step).tolist() == list(STEPS[i % 8])
        assert 1 <= max(map(abs, step)) <= 3
        background = videos.background(i)
        moved = (frames != background).any(-1)  # where the garment is seen
        assert moved[0].any()
        for number in range(1, 6):
            shift = (number * step[0], number * step[1])
            # Nowhere else, up to pixels of the garment that look like the background.
            differing = moved[number] ^ np.roll(moved[0], shift, axis=(0, 1))
            assert differing.mean() < 0.01


def test_a_reversed_video_is_one_of_the_opposite_label(garments: Path) -> None:
    videos = samples(garments, 16)
    for i in range(8):
        motion, frames = videos.motion(i), videos.frames(i)
        (down, right), place = motion.step, motion.item.place
        last = place._replace(top=place.top + 5 * down, left=place.left + 5 * right)
        opposite = Motion(motion.item._replace(place=last), (-down, -right))
        assert np.sign(opposite.step).tolist() == list(STEPS[(i + 4) % 8])
        background = videos.background(i)
        at = int(np.searchsorted(videos.garments.numbers, motion.item.number))
        garment = enlarge(videos.garments.images[at], place.height)
        assert np.array_equal(draw(background, garment, opposite, 6), frames[::-1])


def test_backgrounds(garments: Path) -> None:
    striped, plain = (
        moving_fashion(garments, 16, 8, replace(OPTIONS, background=name)).splits["train"]
        for name in ("stripes", "plain")
    )
    assert isinstance(striped, MovingSamples)
    assert isinstance(plain, MovingSamples)
    assert not plain.background(3).any()
    assert len(np.unique(striped.background(3).reshape(-1, 3), axis=0)) > 8
    assert striped.motion(3).item.place == plain.motion(3).item.place
    for frame, other in zip(plain.frames(3), striped.frames(3), strict=True):
        garment = frame.any(-1)  # all but its rim, which is mixed with the background
        assert 0.02 < garment.mean() < 0.5
        assert (frame != other).any(-1)[~garment].all()


def test_labels_are_balanced_and_garments_of_their_split(garments: Path) -> None:
    source = moving_fashion(garments, 64, 16, OPTIONS)
    assert source.classes == tuple(DIRECTIONS)
    for split, total in (("train", 40), ("val", 20)):
        videos = source.splits[split]
        assert isinstance(videos, MovingSamples)
        assert np.bincount([videos.label(i) for i in range(len(videos))]).tolist() == [len(videos) // 8] * 8
        assert videos.garments.total == total
        assert len(videos.garments.images) == total
        label = videos[3]["garment"]
        assert label == int(videos.garments.labels[videos.motion(3).item.number])


def test_the_files_tell_nothing_by_their_length_and_have_key_frames_alone(garments: Path) -> None:
    videos = samples(garments, 24)
    bodies = [videos[i]["video"].body for i in range(24)]
    assert {len(body) for body in bodies} == {OPTIONS.file_bytes}  # a baseline of lengths has nothing to see
    for body in bodies[:4]:
        with opened(body) as packets:
            assert packets.keys == tuple(range(6))


def test_the_length_without_padding_is_at_chance_too(garments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "padded_mp4", lambda body, size: body)
    videos, count = samples(garments, 120), 120
    lengths = np.array([len(videos[i]["video"].body) for i in range(count)])
    labels = np.arange(count) % 8
    distance = np.abs(lengths[:, None] - lengths[None]).astype(float)
    np.fill_diagonal(distance, np.inf)
    nearest = labels[np.argsort(distance, axis=1, kind="stable")[:, :9]]
    votes = np.array([np.bincount(row, minlength=8).argmax() for row in nearest])
    hits = int((votes == labels).sum())
    # Binomial(120, 1/8): mean 15, standard deviation 3.6; within 3.3 of them
    assert 3 <= hits <= 27


def test_the_distribution_of_a_frame_is_that_of_every_label(garments: Path) -> None:
    """On the torus a start is uniform, so is every frame's place: counts in quarters, by label and frame."""
    videos = samples(garments, 1600)
    for frame in (0, 5):
        counts = np.zeros((8, 4))
        for i in range(len(videos)):
            motion = videos.motion(i)
            place = [
                (start + frame * step) % 32 >= 16
                for start, step in zip(motion.item.place[:2], motion.step, strict=True)
            ]
            counts[i % 8, 2 * place[0] + place[1]] += 1
        assert ((counts - 50) ** 2 / 50).sum() < 51.2  # chi-square, 24 degrees of freedom, p = 0.001


def test_a_video_is_a_function_of_seed_and_number(garments: Path) -> None:
    one, other = samples(garments, 64), samples(garments, 64)
    some = np.array([9, 3, 60])
    chosen = other.select(some)
    assert len(chosen.garments.images) <= 3
    for at, row in enumerate(some.tolist()):
        assert chosen[at]["video"] == one[row]["video"]
        assert chosen.label(at) == one.label(row) == row % 8
    assert samples(garments, seed=1)[3]["video"] != one[3]["video"]
    assert samples(garments, split="val").frames(3).tolist() != one.frames(3).tolist()
    assert one.digest == other.digest != samples(garments, seed=1).digest


def test_the_bytes_do_not_depend_on_the_instructions_of_the_processor(
    garments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [samples(garments).frames(i) for i in range(4)]
    fast = [encode(one, OPTIONS.file_bytes).body for one in frames]
    slow = ENCODER | {"x264-params": f"{ENCODER['x264-params']}:asm=0"}
    monkeypatch.setattr(module, "ENCODER", slow)
    assert [encode(one, OPTIONS.file_bytes).body for one in frames] == fast


def test_a_decoded_frame_is_close_to_what_was_drawn(garments: Path) -> None:
    videos = samples(garments)
    frames, body = videos.frames(2), videos[2]["video"].body
    assert np.abs(decode_frames(body, range(6)).astype(int) - frames).mean() < 8
    facts = read_facts(body)
    assert facts == videos[2]["video"].facts
    assert (facts.frames, facts.fps_millis, facts.height, facts.width) == (6, 25000, 32, 32)


def test_planes_of_known_colours() -> None:
    # BT.601: white 235 128 128, black 16 128 128, red 82 90 240, blue 41 240 110 (in whole numbers)
    colours = {
        (255, 255, 255): (235, 128, 128),
        (0, 0, 0): (16, 128, 128),
        (255, 0, 0): (82, 90, 240),
        (0, 0, 255): (41, 240, 110),
    }
    for colour, expected in colours.items():
        planes = i420(np.full((2, 4, 3), colour, dtype=np.uint8))
        assert planes.shape == (3, 4)
        assert (planes[:2] == expected[0]).all()
        assert planes[2].tolist() == [expected[1]] * 2 + [expected[2]] * 2


def test_padding_is_a_box_and_never_cuts() -> None:
    assert padded_mp4(b"x" * 10, 17) is None
    assert padded_mp4(b"x" * 10, 18) == b"x" * 10 + b"\0\0\0\x08free"
    assert padded_mp4(b"x" * 10, 20) == b"x" * 10 + b"\0\0\0\x0afree\0\0"


def test_what_does_not_fit_is_made_coarser(garments: Path) -> None:
    frames = samples(garments).frames(0)
    tight = len(encode(frames, 100_000).body.rstrip(b"\0")) - 200
    assert read_facts(encode(frames, tight).body).frames == 6
    with pytest.raises(DataError, match="do not fit 900 bytes"):
        encode(frames, 900)


def test_packed_and_read_back(garments: Path, tmp_path: Path) -> None:
    source = moving_fashion(garments, 16, 8, OPTIONS)
    one = pack(source, "train", tmp_path / "one", samples_per_shard=8)
    two = pack(source, "train", tmp_path / "two", samples_per_shard=8, workers=2)
    assert one == two
    reader = ShardReader(tmp_path / "one", Manifest.load(tmp_path / "one"))
    labels = np.concatenate([reader.numbers(shard, "label") for shard in range(2)])
    assert np.bincount(labels).tolist() == [2] * 8
    assert reader.numbers(0, "frames").tolist() == [6] * 8
    assert set(reader.numbers(0, "garment").tolist()) <= set(range(10))
    assert read_facts(reader.read(0, 0, ["video"])["video"]).frames == 6  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"side": 33}, r"--motion-size \(33\) must be an even number"),
        ({"frames": 1}, r"frames \(1\) must be in 2"),
        ({"speed": (0, 2)}, r"--motion-speed \(0, 2\) must be 1 <= low"),
        ({"speed": (1, 32)}, r"--motion-speed \(1, 32\)"),
        ({"background": "noise"}, r"background \('noise'\) must be one of plain, stripes"),
        ({"garment": (24, 65)}, r"--motion-garment \(24, 65\) must be 8 <= low <= high <= 64"),
    ],
)
def test_options_are_checked(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        MotionOptions(**options)


def test_a_split_without_videos_is_refused(garments: Path) -> None:
    with pytest.raises(DataError, match=r"--motion-train \(0\) must be at least 1"):
        moving_fashion(garments, 0, 8)
    assert isinstance(moving_fashion(garments, 8, 8), Source)
