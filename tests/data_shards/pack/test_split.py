"""A validation split carved out of a packed one."""

from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.pack.sources.folders import image_folder
from data_shards.pack.split import choose_validation, split_off
from data_shards.pack.write import pack
from data_shards.verify.verify import verify
from tests.data_shards.image_folders import contents, jpeg, make_folder, samples_in


def test_no_class_gives_more_than_half(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 100])
    checksums = np.random.default_rng(0).integers(0, 2**63, len(labels), dtype=np.uint64)
    val = choose_validation(labels, checksums, 3, seed=0)
    assert np.bincount(labels[val], minlength=6).tolist() == [0, 1, 1, 2, 2, 3]
    shuffled = np.random.default_rng(1).permutation(len(labels))
    again = choose_validation(labels[shuffled], checksums[shuffled], 3, seed=0)
    assert set(checksums[shuffled][again]) == set(checksums[val])  # whatever their order
    other = choose_validation(labels, checksums, 3, seed=1)
    assert set(checksums[other]) != set(checksums[val])


def test_every_sample_of_a_large_class_is_as_likely() -> None:
    labels, checksums = np.zeros(50, np.int64), np.arange(50, dtype=np.uint64)
    counts = sum(choose_validation(labels, checksums, 10, seed).astype(int) for seed in range(2000))
    # Binomial of 2000 draws at 1/5: 400 +- 18; five standard deviations.
    assert np.abs(counts - 400).max() < 90


def test_both_splits_together_are_the_old_one(tmp_path: Path) -> None:
    source = image_folder(make_folder(tmp_path / "in", {"train": 60}, classes=4))
    single = tmp_path / "in" / "train" / "rare" / "a.jpg"
    single.parent.mkdir()
    single.write_bytes(jpeg(1000))
    source = image_folder(tmp_path / "in")
    pack(source, "train", tmp_path / "whole", samples_per_shard=16)
    whole = samples_in(tmp_path / "whole")
    made = split_off(tmp_path / "whole", tmp_path / "a", 5)
    train, val = (samples_in(tmp_path / "a" / split) for split in ("train", "val"))
    assert sorted(train + val) == sorted(whole)
    assert train == [sample for sample in whole if sample not in val]  # in the old order
    assert np.bincount([label for _, label in val], minlength=5).tolist() == [5, 5, 5, 5, 0]
    assert made["train"].classes == made["val"].classes == source.classes
    assert made["train"].samples_per_shard.tolist() == [16, 16, 9]
    for split in ("train", "val"):
        assert verify(tmp_path / "a" / split, decode=True).ok
    split_off(tmp_path / "whole", tmp_path / "b", 5, workers=2)
    for split in ("train", "val"):
        assert contents(tmp_path / "a" / split) == contents(tmp_path / "b" / split)


def test_other_shard_sizes_choose_the_same(tmp_path: Path) -> None:
    source = image_folder(make_folder(tmp_path / "in", {"train": 60}))
    for name, options in {"a": {"samples_per_shard": 7}, "b": {"bytes_per_shard": 20_000, "seed": 5}}.items():
        pack(source, "train", tmp_path / name, **options)
        split_off(tmp_path / name, tmp_path / f"{name}-split", 4)
    a, b = (sorted(samples_in(tmp_path / f"{name}-split" / "val")) for name in "ab")
    assert a == b


def test_nothing_to_carve(tmp_path: Path) -> None:
    source = image_folder(make_folder(tmp_path / "in", {"train": 3}))
    pack(source, "train", tmp_path / "whole")
    with pytest.raises(DataError, match="no class has two samples"):
        split_off(tmp_path / "whole", tmp_path / "a", 5)
    with pytest.raises(DataError, match=r"val_per_class \(0\)"):
        split_off(tmp_path / "whole", tmp_path / "a", 0)
