"""Streams of samples with many members: views, padded label images, ragged points, numbers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.format.fields import Members
from data_shards.format.index import Manifest
from data_shards.format.rng import DrawKey, Purpose, permutation
from data_shards.image.decode import decode_image, decode_views, stack_views
from data_shards.image.geometry import TrainTransform
from data_shards.order.sampling import TrainSampling
from data_shards.pack.write import pack
from data_shards.stream.batch import Batch
from data_shards.stream.collate import Canvas, Collator, Fixed, MultipleOf, Padded, Ragged, image_tensor
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling, StreamOptions
from data_shards.stream.train import TrainStream
from data_shards.stream.transform import Example, file_of, number_of
from data_shards.stream.webdataset import WebDatasetStream
from tests.data_shards.member_sets import FIELDS, member_source, sample

COUNT, PER_SHARD, SEED, FILL = 22, 5, 3, -1
RANKS = permutation(COUNT, Purpose.PACK, SEED).tolist()
CROP = TrainTransform(image_size=8)


@dataclass(frozen=True)
class Everything:
    """Two views, a label image of 8, 12 or 16 rows, points, and the number that tells samples apart."""

    canvas: Canvas = (16, 32)
    bad: tuple[int, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        return ("count", "image", "label", "mask", "points")

    @property
    def collators(self) -> Mapping[str, Collator]:
        return {
            "views": image_tensor((8, 8), 2),
            "mask": Padded(self.canvas, FILL, np.int32),
            "points": Ragged(np.float32, (2,)),
            "count": Fixed((), np.int64),
        }

    def __call__(self, members: Members, key: DrawKey) -> Example:
        count, rows = number_of(members, "count"), 8 + 4 * number_of(members, "label")
        if count in self.bad:
            raise DataError("no good")
        keys = [key._replace(view=view) for view in range(2)]
        return {
            "views": stack_views(decode_views(file_of(members, "image"), [CROP, CROP], keys)),
            "mask": CODECS["label_image"].decode(file_of(members, "mask"))[:rows],
            "points": CODECS["array"].decode(file_of(members, "points")),
            "count": count,
        }


NUMBERS = {sample(number)["count"]: number for number in range(COUNT)}


def assert_is(row: Mapping[str, Any], number: int, position: int, seed: int = SEED) -> None:
    """A row is what the source has, by the key of the position."""
    values = sample(number)
    views = [decode_image(values["image"], CROP, DrawKey(seed, position, view)) for view in range(2)]
    np.testing.assert_array_equal(row["views"], np.stack(views))
    np.testing.assert_array_equal(row["points"], values["points"])
    height = 8 + 4 * values["label"]
    assert row["mask_size"].tolist() == [height, 32]
    np.testing.assert_array_equal(row["mask"][:height, :32], values["mask"][:height])
    assert (row["mask"][height:] == FILL).all()


def rows_of(batch: Batch) -> list[dict[str, Tensor]]:
    """The tensors of each sample of a batch."""
    offsets = batch["points_offsets"].tolist()
    assert batch["points"].shape == (offsets[-1], 2)
    return [
        {name: batch[name][i] for name in ("views", "mask", "mask_size", "count")}
        | {"points": batch["points"][offsets[i] : offsets[i + 1]]}
        for i in range(len(batch.positions))
    ]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("members") / "train"
    pack(member_source(COUNT), "train", out, samples_per_shard=PER_SHARD, seed=SEED)
    return out


def train(
    split: Path,
    rank: int = 0,
    ranks: int = 1,
    micro: int = 4,
    transform: Everything = Everything(),
    **options: Any,
) -> TrainStream:
    sampling = TrainSampling(
        seed=SEED, global_batch_size=8, micro_batch_size=micro, interleave=4, shuffle_buffer=4
    )
    return TrainStream(split, sampling, transform, StreamOptions(dp_rank=rank, dp_size=ranks, **options))


def seen(stream: TrainStream, steps: int) -> dict[int, dict[str, Tensor]]:
    """The rows by position of some optimizer steps."""
    with stream:
        batches = list(islice(stream, steps * stream.grad_accum_steps))
    return {p: row for b in batches for p, row in zip(b.positions.tolist(), rows_of(b), strict=True)}


def number_at(stream: TrainStream, position: int) -> int:
    (shard,), (row,) = stream.order.locate(np.array([position]))
    return int(RANKS[shard * PER_SHARD + row])


def test_training_gives_what_the_members_hold_on_any_ranks(split: Path) -> None:
    stream = train(split)
    alone = seen(stream, 4)
    assert sorted(alone) == list(range(32))
    for position, row in alone.items():
        assert_is(row, number_at(stream, position), position)
    for ranks, micro in ((2, 2), (2, 4), (4, 1)):
        for rank in range(ranks):
            for position, row in seen(train(split, rank, ranks, micro), 4).items():
                assert all(torch.equal(row[name], tensor) for name, tensor in alone[position].items())


def test_a_resume_on_other_ranks_is_the_same_stream(split: Path) -> None:
    alone = seen(train(split), 5)
    first = train(split, 1, 2)
    seen(first, 2)
    state = json.loads(json.dumps(first.state_dict()))
    for rank in range(4):
        resumed = train(split, rank, 4, 2)
        resumed.load_state_dict(state)
        for position, row in seen(resumed, 3).items():
            assert position >= 16
            assert all(torch.equal(row[name], tensor) for name, tensor in alone[position].items())


@pytest.mark.filterwarnings("ignore:quarantined")
def test_a_sample_that_the_transform_refuses_is_replaced(split: Path, tmp_path: Path) -> None:
    bad = (3, 8)
    refuses = Everything(bad=tuple(sample(number)["count"] for number in bad))
    stream = train(split, transform=refuses, quarantine=tmp_path / "q.jsonl")
    replaced = 0
    for position, row in seen(stream, 3).items():
        number = number_at(stream, position)
        if number in bad:
            others = (number_at(stream, other) for other in stream.order.replacements(position))
            number, replaced = next(other for other in others if other not in bad), replaced + 1
        assert_is(row, number, position)
    assert replaced == stream.telemetry.totals()["replaced"] > 0
    lines = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in lines} == {"cannot be used: no good"}
    with (
        pytest.raises(DataError, match="sample 000000.. cannot be used: no good"),
        train(split, transform=refuses) as one,
    ):
        list(islice(one, 6))


@pytest.mark.parametrize(("ranks", "size"), [(1, 4), (2, 4), (3, 1), (3, 3)])
def test_evaluation_has_each_sample_once_and_empty_padding(split: Path, ranks: int, size: int) -> None:
    """Samples alone in their batch have canvases of their own sizes; a batch of padding, that of 1 x 1."""
    transform = Everything(canvas=MultipleOf(8) if size == 1 else (16, 32))
    found = []
    for rank in range(ranks):
        options = StreamOptions(dp_rank=rank, dp_size=ranks)
        with EvalStream(split, EvalSampling(batch_size=size), transform, options) as stream:
            batches = list(stream)
        assert len(batches) == -(-COUNT // (ranks * size))
        for batch in batches:
            for position, weight, row in zip(
                batch.positions.tolist(), batch.weights.tolist(), rows_of(batch), strict=True
            ):
                if weight:
                    assert_is(row, RANKS[position], position, seed=0)
                    found.append(position)
                    continue
                assert position == -1
                assert not row["views"].any()
                assert (row["mask"] == FILL).all()
                assert row["mask"].shape == ((8, 8) if size == 1 else (16, 32))
                assert row["mask_size"].tolist() == [0, 0]
                assert len(row["points"]) == 0
    assert sorted(found) == list(range(COUNT))


def test_canvases_of_one_batch_are_of_one_size(split: Path) -> None:
    own = Everything(canvas=MultipleOf(4))
    with train(split, transform=own) as stream, pytest.raises(DataError, match="batches of one sample"):
        list(islice(stream, 4))
    with train(split, micro=1, transform=own) as stream:
        shapes = {tuple(batch["mask"].shape) for batch in islice(stream, 16)}
    assert shapes == {(1, 8, 32), (1, 12, 32), (1, 16, 32)}
    with train(split, transform=Everything(canvas=(16, 16))) as stream, pytest.raises(DataError) as caught:
        list(islice(stream, 4))
    assert "x 32 pixels do not fit 16 x 16 pixels; resize the images to fit" in str(caught.value)


def test_a_member_that_the_samples_lack_is_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="no member 'count', but image, label"):
        train(shards)


def test_tars_without_a_manifest_have_the_same_members(split: Path) -> None:
    tars = f"{split}/{{000000..{len(Manifest.load(split).shards) - 1:06d}}}.tar"
    sampling = TrainSampling(seed=SEED, global_batch_size=8, micro_batch_size=4)
    with pytest.raises(DataError, match="`fields` lacks count, which the transform reads"):
        WebDatasetStream(tars, sampling, Everything(), num_classes=3)
    numbers = set()
    with WebDatasetStream(tars, sampling, Everything(), num_classes=3, fields=FIELDS) as stream:
        for batch in islice(stream, 12):
            for position, row in zip(batch.positions.tolist(), rows_of(batch), strict=True):
                number = NUMBERS[int(row["count"])]
                assert_is(row, number, position)
                numbers.add(number)
    assert len(numbers) > COUNT // 2
