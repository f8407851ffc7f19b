"""A source of another package: found by its path, and errors that name it."""

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.samples import ArraySamples, Source
from data_shards.pack.sources.registry import SOURCES, find_source


def own(directory: str) -> Source:
    samples = ArraySamples(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]))
    return Source("own", directory, ("a", "b"), {"train": samples})


def test_a_source_is_found_by_its_name_or_its_path() -> None:
    assert find_source("folder") is SOURCES["folder"]
    source = find_source(f"{__name__}:own")("somewhere")
    assert (source.description, len(source.splits["train"])) == ("somewhere", 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foldr", r"--source foldr: no such source; did you mean folder\?"),
        ("zzz", "known here: ade20k, coco, fashion-canvas"),
        ("nowhere:own", "cannot be imported: No module named 'nowhere'"),
    ],
)
def test_a_source_that_is_none(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_source(name)
