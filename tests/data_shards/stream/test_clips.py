"""Clips from shards: the frames that the rules say, one geometry for all, in streams that resume exactly."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from data_shards.errors import DataError
from data_shards.format.fields import VIDEO_AND_LABEL
from data_shards.format.index import Manifest
from data_shards.format.rng import DrawKey
from data_shards.format.samples import Source
from data_shards.image.clip_crops import ClipCrops
from data_shards.image.decode import decode_image
from data_shards.image.geometry import TrainTransform
from data_shards.order.sampling import TrainSampling
from data_shards.pack.write import pack
from data_shards.stream.clips import EvalClips, TrainClips
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling, StreamOptions
from data_shards.stream.train import TrainStream
from data_shards.video.clips import ClipSampling
from data_shards.video.decode import decode_frames
from data_shards.video.prepare import VideoRecipe, prepare_video
from tests.data_shards.videos import coded_video, number_of, write_video

CLASSES = ("even", "odd")
WHOLE = TrainTransform(image_size=(32, 48), scale=(1.0, 1.0), ratio=(1.5, 1.5), flip_prob=0.0)


@dataclass(frozen=True)
class Videos:
    """Sample i has 10 + i frames; the methods are those of `Samples`."""

    rows: np.ndarray
    digest: str = "videos 1"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        row = int(self.rows[i])
        return {"label": row % 2, **prepare_video(coded_video(10 + row), VideoRecipe()).members()}

    def select(self, rows: np.ndarray) -> "Videos":
        return Videos(self.rows[rows])

    def describe(self, i: int) -> str:
        return f"video {self.rows[i]}"

    def label(self, i: int) -> int:
        return int(self.rows[i]) % 2

    def sizes(self) -> np.ndarray:
        return np.full(len(self), 3000)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("videos") / "train"
    source = Source("videos", "coded", CLASSES, {"train": Videos(np.arange(12))}, fields=VIDEO_AND_LABEL)
    pack(source, "train", out, samples_per_shard=5)
    return out


def numbers(clip: torch.Tensor) -> list[int]:
    """Of the frames of a clip (D, 3, H, W)."""
    return [number_of(frame) for frame in clip.permute(0, 2, 3, 1).numpy()]


def members(body: bytes, label: int = 3) -> dict[str, bytes | int]:
    return {"video": body, "label": label}


def test_the_index_has_the_facts(packed: Path) -> None:
    manifest = Manifest.load(packed)
    names = ["video", "label", "frames", "fps_millis", "height", "width"]
    assert [field.name for field in manifest.fields] == names
    with EvalStream(
        packed,
        EvalSampling(batch_size=1),
        EvalClips(sampling=ClipSampling(mode="uniform"), crops=ClipCrops(image_size=8)),
    ) as stream:
        frames = np.concatenate([stream.reader.numbers(shard, "frames") for shard in range(3)])
        assert sorted(frames.tolist()) == list(range(10, 22))
        assert set(stream.reader.numbers(0, "fps_millis").tolist()) == {25000}


def test_a_training_clip_has_the_frames_of_its_key() -> None:
    transform = TrainClips(sampling=ClipSampling(frames=4, interval=3), geometry=WHOLE)
    for position in range(20):
        key = DrawKey(5, position)
        example = transform(members(coded_video(30)), key)
        assert (
            numbers(torch.from_numpy(np.asarray(example["clip"])))
            == transform.sampling.indices(30, key=key)[0].tolist()
        )
        assert example["label"] == 3


def test_one_geometry_for_all_frames_as_that_of_an_image() -> None:
    # A still: every frame of the clip is what the image path makes of the same picture, bit for bit.
    picture = decode_frames(coded_video(30), [21])[0]
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    still = write_video(
        np.stack([picture] * 6),
        [40 * i for i in range(6)],
        codec="libx264rgb",
        pix_fmt="rgb24",
        options={"qp": "0"},
    )
    geometry = TrainTransform(image_size=24, scale=(0.3, 0.8))
    transform = TrainClips(sampling=ClipSampling(frames=4, interval=1), geometry=geometry)
    for position in range(8):
        key = DrawKey(1, position)
        clip = np.asarray(transform(members(still), key)["clip"])
        image = decode_image(file.getvalue(), geometry, key)
        assert np.array_equal(clip, np.stack([image] * 4))


def test_views_are_clips_times_crops() -> None:
    sampling = ClipSampling(frames=3, interval=2, clips=2, mode="uniform")
    transform = EvalClips(sampling=sampling, crops=ClipCrops(image_size=32, crops=3))
    assert transform.views == 6
    example = transform(members(coded_video(31)))
    clip = np.asarray(example["clip"])
    assert clip.shape == (6, 3, 3, 32, 32)
    full = decode_frames(coded_video(31), sampling.indices(31).ravel()).reshape(2, 3, 32, 48, 3)
    for view, (number, left) in enumerate((c, left) for c in range(2) for left in (0, 16, 8)):
        expected = full[number, :, :, left : left + 32].transpose(0, 3, 1, 2)
        assert np.array_equal(clip[view], expected)


def test_batches_are_channels_last_and_the_same_on_any_ranks_and_threads(packed: Path) -> None:
    transform = TrainClips(
        sampling=ClipSampling(frames=4, interval=2), geometry=TrainTransform(image_size=16)
    )
    found: dict[int, torch.Tensor] = {}
    for ranks, micro, threads, ring in ((1, 4, 1, 2**31), (2, 2, 3, 1)):
        for rank in range(ranks):
            sampling = TrainSampling(seed=0, global_batch_size=4, micro_batch_size=micro)
            options = StreamOptions(dp_rank=rank, dp_size=ranks, threads=threads, ring_bytes=ring)
            with TrainStream(packed, sampling, transform, options) as stream:
                for _, batch in zip(range(4), stream, strict=False):
                    clip = batch["clip"]
                    assert clip.shape == (micro, 4, 3, 16, 16)
                    assert clip.permute(0, 1, 3, 4, 2).is_contiguous()
                    for position, one in zip(batch.positions.tolist(), clip, strict=True):
                        assert torch.equal(found.setdefault(position, one.clone()), one)
    assert sorted(found) == list(range(16))


def test_evaluation_takes_every_video_once(packed: Path) -> None:
    transform = EvalClips(
        sampling=ClipSampling(frames=2, interval=4, clips=2, mode="uniform"), crops=ClipCrops(image_size=16)
    )
    seen: dict[int, torch.Tensor] = {}
    for ranks in (1, 2):
        for rank in range(ranks):
            options = StreamOptions(dp_rank=rank, dp_size=ranks)
            with EvalStream(packed, EvalSampling(batch_size=5), transform, options) as stream:
                for batch in stream:
                    assert batch["clip"].shape == (5, 2, 2, 3, 16, 16)
                    for position, clip, weight in zip(
                        batch.positions.tolist(), batch["clip"], batch.weights, strict=True
                    ):
                        if weight:
                            assert torch.equal(seen.setdefault(position, clip.clone()), clip)
    assert sorted(seen) == list(range(12))


def test_a_damaged_video_is_named_and_replaced(packed: Path, tmp_path: Path) -> None:
    """One that was packed without being decoded: it decodes up to the damage only."""
    body = coded_video(20, b_frames=0)
    with av.open(io.BytesIO(body)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    damaged = bytearray(body)
    for at, size in packets[1:]:
        damaged[at : at + size] = bytes(size)
    bad = bytes(damaged)

    class OneBad(Videos):
        def __getitem__(self, i: int) -> Mapping[str, Any]:
            values = dict(super().__getitem__(i))
            return values | {"video": bad} if self.rows[i] == 4 else values

        def select(self, rows: np.ndarray) -> "OneBad":
            return OneBad(self.rows[rows])

    source = Source("videos", "coded", CLASSES, {"train": OneBad(np.arange(12))}, fields=VIDEO_AND_LABEL)
    pack(source, "train", tmp_path / "bad", samples_per_shard=6, check="none")
    transform = TrainClips(
        sampling=ClipSampling(frames=6, interval=1), geometry=TrainTransform(image_size=16)
    )
    sampling = TrainSampling(seed=0, global_batch_size=6, micro_batch_size=6)
    options = StreamOptions(quarantine=tmp_path / "quarantine.jsonl")
    with (
        pytest.warns(UserWarning, match="quarantined: .* video"),
        TrainStream(tmp_path / "bad", sampling, transform, options) as stream,
    ):
        weights = [batch.weights.tolist() for _, batch in zip(range(4), stream, strict=False)]
    assert weights == [[1] * 6] * 4
    assert 2 <= stream.counts()["replaced"] <= 4  # once an epoch; up to two epochs are decoded ahead
    assert "video that cannot be read" in (tmp_path / "quarantine.jsonl").read_text()


def test_readers_and_clips_are_checked() -> None:
    with pytest.raises(DataError, match="reader .'opencv'. must be one of pyav, torchcodec"):
        TrainClips(sampling=ClipSampling(), geometry=WHOLE, reader="opencv")
    with pytest.raises(DataError, match=r"clips \(4\) must be 1 in training"):
        TrainClips(sampling=ClipSampling(mode="uniform", clips=4), geometry=WHOLE)
