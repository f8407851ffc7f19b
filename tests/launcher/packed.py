"""Shards of made-up images for the tests."""

from pathlib import Path

from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack


def pack_synthetic(
    out: Path, train: int, val: int, *, num_classes: int = 10, image_size: int, samples_per_shard: int
) -> Path:
    """Pack so many images to train on and to evaluate into `out`/train and `out`/val; returns `out`."""
    source = synthetic(train, val, num_classes=num_classes, image_size=image_size)
    for split in ("train", "val"):
        pack(source, split, out / split, samples_per_shard=samples_per_shard)
    return out
