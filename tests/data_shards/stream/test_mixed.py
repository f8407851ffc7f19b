"""Mixed streams: each part is what it is alone, on any ranks and after a resume."""

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_shards.errors import DataError
from data_shards.image.geometry import TrainTransform
from data_shards.order.sampling import TrainSampling
from data_shards.stream.batch import Batch
from data_shards.stream.mixed import MixedStream, share_out
from data_shards.stream.options import StreamOptions
from data_shards.stream.train import SUMMED, TrainStream
from data_shards.stream.transform import Images, LabelledImages, Transform
from tests.data_shards.tiny_splits import bodies_of, write_split

SHARES = {"labelled": 1, "unlabelled": 4}
TRANSFORMS: Mapping[str, Transform] = {
    "labelled": LabelledImages(TrainTransform(image_size=8)),
    "unlabelled": Images(TrainTransform(image_size=12)),
}
Row = dict[str, Tensor]


@pytest.fixture(scope="module")
def splits(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packed samples, and the first 31 of them as a split of their own, whose seventh is no image."""
    bodies, labels = bodies_of(shards)
    small = tmp_path_factory.mktemp("small") / "train"
    write_split(small, [*bodies[:7], b"no image", *bodies[8:31]], labels[:31], 10)
    return {"labelled": shards, "unlabelled": small}


def part_streams(
    splits: Mapping[str, Path], rank: int = 0, ranks: int = 1, size: int = 40, micro: int = 10, **options: Any
) -> dict[str, TrainStream]:
    sampling = TrainSampling(seed=3, global_batch_size=size, micro_batch_size=micro)
    at = StreamOptions(dp_rank=rank, dp_size=ranks, **options)
    samplings = share_out(sampling, SHARES)
    return {name: TrainStream(splits[name], samplings[name], TRANSFORMS[name], at) for name in SHARES}


def mixed(splits: Mapping[str, Path], rank: int = 0, ranks: int = 1, **options: Any) -> MixedStream:
    return MixedStream(part_streams(splits, rank, ranks, **options))


def take(stream: MixedStream | TrainStream, steps: int) -> list[Batch]:
    with stream:
        return list(islice(stream, steps * stream.grad_accum_steps))


def rows(batches: list[Batch]) -> dict[int, Row]:
    """The tensors of each sample by its position, which says of which part it is."""
    found: dict[int, Row] = {}
    for batch in batches:
        count = len(batch["labelled.label"])
        parts = dict.fromkeys(range(count), "labelled") | dict.fromkeys(
            range(count, len(batch.positions)), "unlabelled"
        )
        for i, part in parts.items():
            position, place = int(batch.positions[i]), i - (count if part == "unlabelled" else 0)
            assert position not in found
            assert position % 2 == list(SHARES).index(part)
            named = {name: t for name, t in batch.tensors.items() if name.startswith(part)}
            found[position] = {name: tensor[place] for name, tensor in named.items()}
    return found


def assert_same(one: dict[int, Row], other: dict[int, Row]) -> None:
    for position, row in one.items():
        assert row.keys() == other[position].keys()
        assert all(torch.equal(tensor, other[position][name]) for name, tensor in row.items())


@pytest.fixture
def quarantined(tmp_path: Path) -> dict[str, Any]:
    return {"quarantine": tmp_path / "quarantine.jsonl"}


@pytest.mark.filterwarnings("ignore:quarantined")
def test_each_part_is_what_it_is_alone(splits: dict[str, Path], quarantined: dict[str, Any]) -> None:
    """Five steps of 8 + 32: the smaller part is in its sixth epoch, and its bad sample is replaced."""
    stream = mixed(splits, **quarantined)
    assert (stream.num_samples, len(stream.classes)) == (103, 5)
    batches = take(stream, 5)
    for name, alone in part_streams(splits, **quarantined).items():
        for batch, single in zip(batches, take(alone, 5), strict=True):
            for tensor in single.tensors:
                assert torch.equal(batch[f"{name}.{tensor}"], single[tensor])
    assert batches[0]["labelled.image"].shape == (2, 3, 8, 8)
    assert batches[0]["unlabelled.image"].shape == (8, 3, 12, 12)
    assert "unlabelled.label" not in batches[0].tensors
    assert sorted(rows(batches)) == sorted([*range(0, 2 * 40, 2), *range(1, 2 * 160, 2)])
    assert all(batch.weights.tolist() == [1] * 10 for batch in batches)
    counts = stream.counts()
    assert counts.keys() == {*SUMMED, "recent_bad", "labelled.recent_bad", "unlabelled.recent_bad"}
    assert counts["replaced"] == stream.parts["unlabelled"].counts()["replaced"] > 3
    assert (counts["labelled.recent_bad"], counts["unlabelled.recent_bad"]) == (0, 1)
    stream.check_counts(counts)
    with pytest.raises(DataError, match="11 bad samples in 10000 positions"):
        stream.check_counts(counts | {"labelled.recent_bad": 11})


@pytest.mark.filterwarnings("ignore:quarantined")
def test_ranks_and_resumes_do_not_show(splits: dict[str, Path], quarantined: dict[str, Any]) -> None:
    """Two steps on two ranks, three more on four with other micro-batches: the samples of one rank."""
    alone = rows(take(mixed(splits, **quarantined), 5))
    first, states = {}, []
    for rank in range(2):
        stream = mixed(splits, rank, 2, micro=5, **quarantined)
        first |= rows(take(stream, 2))
        states.append(json.loads(json.dumps(stream.state_dict())))
    assert states[0] == states[1]
    then = {}
    for rank in range(4):
        resumed = mixed(splits, rank, 4, micro=10, **quarantined)
        resumed.load_state_dict(states[0])
        then |= rows(take(resumed, 3))
    assert first.keys() | then.keys() == alone.keys()
    assert not first.keys() & then.keys()
    assert_same(first | then, alone)


def test_a_state_is_saved_between_steps_and_of_these_parts(splits: dict[str, Path]) -> None:
    stream = mixed({"labelled": splits["labelled"], "unlabelled": splits["labelled"]})
    with stream:
        batches = iter(stream)
        next(batches)
        with pytest.raises(RuntimeError, match="1 of 4 micro-batches"):
            stream.state_dict()
        list(islice(batches, 3))
        state = stream.state_dict()
        assert stream.wait_s > 0
    assert {name: part["samples"] for name, part in state["mixed"].items()} == {
        "labelled": 8,
        "unlabelled": 32,
    }
    one = part_streams(splits)["labelled"]
    with pytest.raises(DataError, match="of the parts labelled, unlabelled, not of synthetic/train"):
        one.load_state_dict(state)
    with pytest.raises(DataError, match="of a single data set, not of the parts labelled, unlabelled"):
        stream.load_state_dict(one.state_dict())
    with pytest.raises(DataError, match="of the parts labelled, not of the parts labelled, unlabelled"):
        stream.load_state_dict({"version": 1, "mixed": {"labelled": state["mixed"]["labelled"]}})


def test_shares_that_do_not_divide_are_an_equation(splits: dict[str, Path]) -> None:
    sampling = TrainSampling(seed=3, global_batch_size=64, micro_batch_size=16)
    with pytest.raises(DataError) as caught:
        share_out(sampling, SHARES)
    assert str(caught.value) == (
        "micro_batch_size (16) must be a multiple of 5, the sum of the shares labelled : unlabelled = 1 : 4; "
        "nearest: 15"
    )
    with pytest.raises(DataError, match=r"shares labelled : unlabelled = 0 : 4 must be at least 1"):
        share_out(sampling, SHARES | {"labelled": 0})
    parts = part_streams(splits)
    with pytest.raises(DataError, match="labelled has 4, unlabelled has 8"):
        MixedStream(
            {"labelled": parts["labelled"], "unlabelled": part_streams(splits, micro=5)["unlabelled"]}
        )
