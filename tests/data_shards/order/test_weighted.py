"""Several training sets with weights: proportions, epochs, order and resume on any ranks and batches."""

import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.image.geometry import TrainTransform
from data_shards.order.sampling import TrainSampling
from data_shards.order.sets import Mixture, TrainSet, mixture
from data_shards.order.weighted import BLOCK, WeightedOrder
from data_shards.stream.mixed import MixedStream
from data_shards.stream.options import ReadOptions, StreamOptions
from data_shards.stream.train import TrainStream
from data_shards.stream.transform import Images, LabelledImages
from tests.data_shards.streams import Seen, seen, tiny_stream
from tests.data_shards.tiny_splits import bodies_of, write_split

SIZES = {"large": 103, "small": 31}
SHARES = {"large": 0.8, "small": 0.2}


@pytest.fixture(scope="module")
def places(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packed samples, and 31 others, of which the eighth is no image."""
    bodies, labels = bodies_of(shards)
    small = tmp_path_factory.mktemp("small") / "train"
    write_split(small, [*bodies[50:57], b"no image", *bodies[58:81]], labels[50:81], 10, name="small")
    named = Manifest.load(small).to_dict() | {"classes": list(Manifest.load(shards).classes)}
    (small / "manifest.json").write_text(json.dumps(named))
    return {"large": shards, "small": small}


@pytest.fixture
def sets(places: dict[str, Path]) -> dict[str, TrainSet]:
    return {name: TrainSet(path=str(places[name]), proportion=SHARES[name]) for name in places}


def order(sizes: dict[str, list[int]], weights: tuple[int, ...], **options: int) -> WeightedOrder:
    mixed = Mixture(weights=weights, samples=sum(map(sum, sizes.values())))
    shards = [np.array(one) for one in sizes.values()]
    return WeightedOrder(
        [*sizes], shards, mixed, **{"seed": 1, "interleave": 4, "shuffle_buffer": 8, **options}
    )


def test_an_epoch_of_the_mixture() -> None:
    """0.8 and 0.2 are 4 : 1, of 134 samples an epoch; without proportions every sample `repeat` times."""
    sizes = [*SIZES.values()]

    def of(**options: dict[str, float]) -> Mixture:
        return mixture({name: TrainSet(path=name, **options.get(name, {})) for name in SIZES}, sizes)

    assert of(large={"proportion": 0.8}, small={"proportion": 0.2}) == Mixture(weights=(4, 1), samples=134)
    assert of(large={"proportion": 8}, small={"proportion": 2}) == Mixture(weights=(4, 1), samples=134)
    assert of() == Mixture(weights=(103, 31), samples=134)
    assert of(small={"repeat": 3}) == Mixture(weights=(103, 93), samples=196)
    assert of(small={"repeat": 0.5}) == Mixture(weights=(103, 16), samples=119)  # 15.5, to the even one
    assert of(large={"proportion": 1}, small={"proportion": 1}).shares == (0.5, 0.5)
    with pytest.raises(
        DataError, match=r"small.proportion \(None\) and small.repeat \(None\), while large has"
    ):
        of(large={"proportion": 0.8})
    with pytest.raises(DataError, match=r"small.proportion \(0.2\) and small.repeat \(2\), while large has"):
        of(large={"proportion": 0.8}, small={"proportion": 0.2, "repeat": 2})
    with pytest.raises(DataError, match=r"large.proportion \(0\) must lie in"):
        of(large={"proportion": 0})


@pytest.mark.parametrize(
    ("sizes", "weights", "options"),
    [
        ({"a": [20] * 5 + [3], "b": [10, 10, 11]}, (4, 1), {}),
        ({"a": [900] * 9, "b": [500, 400]}, (1, 1), {"interleave": 64, "shuffle_buffer": 4096}),
        ({"a": [5000], "b": [3], "c": [700] * 4}, (50, 1, 9), {"interleave": 64, "shuffle_buffer": 100}),
    ],
)
def test_each_set_repeats_no_sample_before_all_were_drawn(
    sizes: dict[str, list[int]], weights: tuple[int, ...], options: dict[str, int]
) -> None:
    """Three blocks: the samples of each set by position are epochs of it, each a permutation of all."""
    one = order(sizes, weights, **options)
    positions = np.arange(3 * BLOCK, dtype=np.int64)
    shard, row = one.locate(positions)
    chosen = one.draws(positions)[0]
    first = 0
    for k, (name, shards) in enumerate(sizes.items()):
        mine = [
            (s - first, r)
            for s, r in zip(shard[chosen == k].tolist(), row[chosen == k].tolist(), strict=True)
        ]
        every = {(s, r) for s, count in enumerate(shards) for r in range(count)}
        total = sum(shards)
        for start in range(0, len(mine) - total + 1, total):
            assert set(mine[start : start + total]) == every, name
        rest = mine[len(mine) // total * total :]
        assert len(set(rest)) == len(rest)
        assert set(rest) <= every
        if total > 10:
            assert mine[:total] != sorted(every)
            assert mine[:total] != mine[total : 2 * total]
        first += len(shards)


def test_positions_one_by_one_or_together() -> None:
    one = order({"a": [20] * 5, "b": [10, 10, 11]}, (4, 1))
    positions = np.random.default_rng(0).integers(0, 10**12, 300)
    shard, row = one.locate(positions)
    for position, found in zip(positions, zip(shard, row, strict=True), strict=True):
        assert found == tuple(part[0] for part in one.locate(np.array([position])))


def test_every_rank_reads_few_segments_of_every_set() -> None:
    """A rank of eight reads about an eighth of the shards of each set, as of one set alone."""
    sizes = {"a": [100] * 640, "b": [100] * 256}
    one = order(sizes, (4, 1), interleave=64, shuffle_buffer=4096)
    read: list[dict[int, set[int]]] = [{0: set(), 1: set()} for _ in range(8)]
    for step in range(40):
        batch = one.global_batch(step * 256, 256)
        assert (np.diff(batch.reshape(-1, 2), axis=1) == 1).all()  # pairs stay together
        for rank in range(8):
            mine = batch[rank * 32 : (rank + 1) * 32]
            for k, own in enumerate(one.own_positions(mine)):
                read[rank][k] |= set(one.orders[k].segment_of(own).tolist())
    for by_set in read:
        assert len(by_set[0]) <= 11
        assert len(by_set[1]) <= 11


def stream(sets: dict[str, TrainSet], rank: int = 0, ranks: int = 1, **options: Any) -> TrainStream:
    return tiny_stream(sets, rank, ranks, **options)


@pytest.fixture
def quarantined(tmp_path: Path) -> dict[str, Any]:
    return {"quarantine": tmp_path / "quarantine.jsonl"}


@pytest.mark.filterwarnings("ignore:quarantined")
def test_order_and_resume_on_1_2_and_3_ranks(sets: dict[str, TrainSet], quarantined: dict[str, Any]) -> None:
    """Killed after any step and resumed on other ranks with other batches: the samples of one rank."""
    wanted = seen(stream(sets, **quarantined), steps=16)
    rng = random.Random(0)
    for ranks in (1, 2, 3):
        assert on_ranks(sets, ranks, 16, None, quarantined)[0] == wanted
    for ranks in (2, 3, 1, 3):
        after = rng.randint(1, 14)
        first, state = on_ranks(sets, ranks % 3 + 1, after, None, quarantined)
        size = 48 if (16 - after) % 2 == 0 else 24
        then, _ = on_ranks(sets, ranks, (16 - after) * 24 // size, state, quarantined, size)
        assert not first.keys() & then.keys()
        assert first | then == wanted


def on_ranks(
    sets: dict[str, TrainSet],
    ranks: int,
    steps: int,
    state: dict[str, Any] | None,
    options: dict[str, Any],
    size: int = 24,
) -> tuple[Seen, dict[str, Any]]:
    """What all ranks see in some steps from a state, and the state after them, the same on all."""
    found, states = Seen(), []
    for rank in range(ranks):
        one = stream(
            sets, rank, ranks, global_batch_size=size, micro_batch_size=size // ranks // 2, **options
        )
        if state:
            one.load_state_dict(json.loads(json.dumps(state)))
        mine = seen(one, steps)
        assert not found.keys() & mine.keys()
        found |= mine
        states.append(one.state_dict())
    assert all(one == states[0] for one in states)
    return found, states[0]


@pytest.mark.filterwarnings("ignore:quarantined")
def test_a_bad_sample_is_replaced_by_one_of_its_set(
    sets: dict[str, TrainSet], places: dict[str, Path], quarantined: dict[str, Any]
) -> None:
    """The bad sample of the small set comes up in 192 positions, and counts for its set."""
    one = stream(sets, transform=TrainTransform(image_size=16), **quarantined)
    bodies = {name: bodies_of(place)[1] for name, place in places.items()}
    with one:
        for batch in islice(one, 8):
            shards, rows = one.order.locate(batch.positions.numpy())
            for label, shard, row in zip(
                batch["label"].tolist(), shards.tolist(), rows.tolist(), strict=True
            ):
                name, local = ("large", shard) if shard < 6 else ("small", shard - 6)
                at = local * (20 if name == "large" else 10) + row
                assert (name, at) == ("small", 7) or label == bodies[name][at]
        counts = one.counts()
    assert (counts["large.recent_bad"], counts["small.recent_bad"], counts["recent_bad"]) == (0, 1, 1)
    assert counts["replaced"] >= 1
    one.check_counts(counts)
    with pytest.raises(DataError, match="small/train: 11 bad samples in 10000 positions"):
        one.check_counts(counts | {"small.recent_bad": 11})
    lines = [json.loads(line) for line in quarantined["quarantine"].read_text().splitlines()]
    assert {(line["data"], line["row"]) for line in lines} == {("small/train", 7)}
    with pytest.raises(DataError, match="no image"), stream(sets) as strict:
        list(islice(strict, 8))


def test_counts_of_a_batch(sets: dict[str, TrainSet], tmp_path: Path) -> None:
    """24 positions of 4 : 1 have 19.2 and 4.8 samples: 19 or 20, and 5 or 4; 134 have 107 and 27."""
    one = stream(sets)
    assert one.num_samples == 134
    for step in range(50):
        counts = Counter((one.order.draws(one.order.global_batch(step * 24, 24))[0]).tolist())
        assert counts[0] in (19, 20)
        assert counts[1] == 24 - counts[0]
    assert np.bincount(one.order.draws(np.arange(134))[0]).tolist() == [107, 27]


def test_a_state_of_other_sets_is_refused(sets: dict[str, TrainSet], places: dict[str, Path]) -> None:
    state = json.loads(json.dumps(stream(sets).state_dict()))
    assert len(json.dumps(state)) < 1000
    large, small = sets["large"], sets["small"]

    def refusal(split: Any) -> str:
        with pytest.raises(DataError) as caught:
            tiny_stream(split).load_state_dict(state)
        return str(caught.value)

    assert "of the sets large, small, not of synthetic/train" in refusal(places["large"])
    assert "of the sets large, small, not of the sets small, large" in refusal(
        {"small": small, "large": large}
    )
    assert "of the sets large, small, not of the sets large" in refusal({"large": large})
    changed = TrainSet(path=small.path, proportion=0.3)
    assert "weights of large, small are 4 : 1 in the state, 8 : 3 here" in refusal(
        {"large": large, "small": changed}
    )
    other = TrainSet(path=large.path, proportion=0.2)
    assert "manifest of another data set: small is small/train, " in refusal({"large": large, "small": other})
    with pytest.raises(DataError, match="of synthetic/train, not of the sets large, small"):
        stream(sets).load_state_dict(tiny_stream(places["large"]).state_dict())
    stream(
        {"large": TrainSet(path=large.path, proportion=4), "small": TrainSet(path=small.path, proportion=1)}
    ).load_state_dict(state)


def test_classes_are_the_same_or_mapped(places: dict[str, Path], tmp_path: Path) -> None:
    """The other set has three of the five classes, in another order."""
    bodies, labels = bodies_of(places["large"])
    few = [i for i, label in enumerate(labels) if label in (4, 1, 2)][:20]
    renamed = {4: 0, 1: 1, 2: 2}
    write_split(tmp_path / "few", [bodies[i] for i in few], [renamed[labels[i]] for i in few], 10)
    classes = Manifest.load(places["large"]).classes
    named = Manifest.load(tmp_path / "few").to_dict() | {"classes": [classes[label] for label in (4, 1, 2)]}
    (tmp_path / "few" / "manifest.json").write_text(json.dumps(named))
    sets = {"all": TrainSet(path=str(places["large"])), "few": TrainSet(path=str(tmp_path / "few"))}
    sampling = TrainSampling(seed=1, global_batch_size=123, micro_batch_size=123)
    transform = LabelledImages(TrainTransform(image_size=8))
    with pytest.raises(DataError, match="all and few: not the same classes: 3 classes instead of 5"):
        TrainStream(sets, sampling, transform)
    with TrainStream(sets, sampling, transform, match_classes=True) as one:
        assert one.classes == classes
        batch = next(iter(one))
        drawn = one.order.draws(batch.positions.numpy())[0]
    assert np.bincount(drawn).tolist() == [103, 20]  # an epoch: every sample once
    assert sorted(batch["label"].numpy()[drawn == 1].tolist()) == sorted(labels[i] for i in few)
    assert sorted(batch["label"].numpy()[drawn == 0].tolist()) == sorted(labels)
    backwards = {"few": sets["few"], "all": sets["all"]}
    with pytest.raises(DataError, match="no class of that name for"):
        TrainStream(backwards, sampling, transform, match_classes=True)
    with TrainStream(sets, sampling, Images(TrainTransform(image_size=8))) as unlabelled:
        assert next(iter(unlabelled)).tensors.keys() == {"image"}


@pytest.mark.filterwarnings("ignore:quarantined")
def test_through_one_cache(
    sets: dict[str, TrainSet], places: dict[str, Path], quarantined: dict[str, Any], tmp_path: Path
) -> None:
    """Both sets in a cache with space for two shards of eleven: the same samples."""
    largest = max(shard.bytes for place in places.values() for shard in Manifest.load(place).shards)
    read = ReadOptions(cache=tmp_path / "cache", cache_bytes=2 * largest + (1 << 20), deadline_s=30)
    cached = stream(sets, read=read, **quarantined)
    assert seen(cached, 10) == seen(stream(sets, **quarantined), 10)
    assert cached.telemetry.totals()["cache_hits"] > 0


@pytest.mark.filterwarnings("ignore:quarantined")
def test_as_a_part_beside_another(
    sets: dict[str, TrainSet], places: dict[str, Path], quarantined: dict[str, Any]
) -> None:
    """Weighted sets are one part of a batch, and another split the other; each set is counted for itself."""
    sampling = TrainSampling(seed=1, global_batch_size=40, micro_batch_size=40)
    transform, options = LabelledImages(TrainTransform(image_size=8)), StreamOptions(**quarantined)
    parts = {
        "labelled": TrainStream(sets, sampling, transform, options),
        "unlabelled": TrainStream(places["large"], sampling, Images(TrainTransform(image_size=8)), options),
    }
    with MixedStream(parts) as both:
        assert both.num_samples == 134
        assert len(next(iter(both)).positions) == 80
        counts = both.counts()
        assert {name for name in counts if "." in name} == {
            "labelled.recent_bad",
            "labelled.large.recent_bad",
            "labelled.small.recent_bad",
            "unlabelled.recent_bad",
        }
        both.check_counts(counts)
        with pytest.raises(DataError, match="small/train: 11 bad samples"):
            both.check_counts(counts | {"labelled.small.recent_bad": 11})
        state = json.loads(json.dumps(both.state_dict()))
    with MixedStream(parts) as again:
        again.load_state_dict(state)
