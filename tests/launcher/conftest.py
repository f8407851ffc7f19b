"""Synthetic shards, packed once for all tests of the launcher."""

from pathlib import Path

import pytest

from data_shards.sources import synthetic
from data_shards.write import pack


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 images to train on in four shards, and 64 in one; only read."""
    out = tmp_path_factory.mktemp("shards")
    source = synthetic(256, 64, num_classes=10, image_size=32)
    for split in ("train", "val"):
        pack(source, split, out / split, samples_per_shard=64)
    return out
