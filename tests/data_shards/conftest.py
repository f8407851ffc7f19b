"""One small packed data set for the tests that only read: 103 synthetic samples of 16x16 in shards of 20."""

from pathlib import Path

import pytest

from data_shards.pack.sources.registry import Source, synthetic
from data_shards.pack.write import pack

SAMPLES, PER_SHARD, SIDE = 103, 20, 16


@pytest.fixture(scope="session")
def source() -> Source:
    return synthetic(SAMPLES, 11, num_classes=5, image_size=SIDE, seed=3)


@pytest.fixture(scope="session")
def shards(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "train"
    pack(source, "train", out, samples_per_shard=PER_SHARD, seed=7)
    return out
