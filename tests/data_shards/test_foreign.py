"""Tars of others through webdataset: every sample comes, and what cannot be promised is printed."""

import tarfile
from itertools import islice
from pathlib import Path

import pytest

from data_shards.decode import decode_train
from data_shards.errors import DataError
from data_shards.foreign import WebDatasetStream, expand

from .conftest import SAMPLES
from .tiny import TRANSFORM, bodies_of


def foreign(place: str, rank: int = 0, ranks: int = 1, **options: object) -> WebDatasetStream:
    defaults = {"seed": 3, "global_batch_size": 20, "micro_batch_size": 5, "transform": TRANSFORM}
    return WebDatasetStream(place, dp_rank=rank, dp_size=ranks, **({"num_classes": 5} | defaults | options))


def test_samples_come_as_webdataset_reads_them(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies, labels = bodies_of(shards)
    with foreign(f"{shards}/{{000000..000005}}.tar", shuffle=1) as stream:
        batches = list(islice(stream, 20))  # five steps of 20: less than one pass over 103
        assert stream.samples == 100
        state = stream.state_dict()
    said = capsys.readouterr().err
    for words in ("exactly-once", "exact resume", "number of ranks", "integrity", "swin-moe shards index"):
        assert words in said
    known = {
        (decode_train(body, (3, p), TRANSFORM).tobytes(), label)
        for p in range(100)
        for body, label in zip(bodies, labels, strict=True)
    }
    found = [
        (image.numpy().tobytes(), label)
        for batch in batches
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True)
    ]
    assert set(found) <= known
    resumed = foreign(f"{shards}/{{000000..000005}}.tar")
    resumed.load_state_dict(state)
    with resumed:
        assert next(iter(resumed)).positions.tolist() == [100, 101, 102, 103, 104]
    with pytest.raises(DataError, match=r"data state: of .*, not of"):
        foreign(f"{shards}/000000.tar").load_state_dict(state)


def test_ranks_share_the_tars_out(shards: Path) -> None:
    """Three ranks of two tars each; a pass of all is every tar once."""
    urls = []
    for rank in range(3):
        stream = foreign(f"{shards}/{{000000..000005}}.tar", rank, 3, global_batch_size=15)
        urls += [tar["url"] for tar in islice(stream._tars(0), 2)]
    assert len(set(urls)) == 6


def test_what_is_wrong_is_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="scheme ftp is not allowed"):
        expand("ftp://host/{0..3}.tar")
    with pytest.raises(DataError, match=r"999999.tar: no such tar"):
        expand(f"{shards}/999999.tar")
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with (
        pytest.raises(DataError, match="no samples in these tars"),
        foreign(f"{tmp_path}/empty.tar") as stream,
    ):
        next(iter(stream))
    with (
        pytest.raises(DataError, match=r"sample 000000\d\d: has an image and the label b'\d'; .* below 2"),
        foreign(f"{shards}/000000.tar", num_classes=2) as stream,
    ):
        list(islice(stream, SAMPLES))
