"""Read every byte of a split, and name what differs from its manifest."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_shards.codecs.registry import codec_of
from data_shards.errors import DataError
from data_shards.format.check import BadSample, Bytes, check_bodies, check_samples
from data_shards.format.fields import IMAGE_AND_LABEL, Field, Sample, files_of
from data_shards.format.index import Manifest, ShardEntry, digest_of, read_index
from data_shards.pack.process_pool import map_in_order

PIECE = 2**22  # bytes hashed at a time


@dataclass(frozen=True)
class VerifyReport:
    """The counts of what `verify` read, and every defect."""

    shards: int
    samples: int
    bytes: int
    bad: tuple[BadSample, ...]

    @property
    def ok(self) -> bool:
        """Whether every shard agrees with the manifest."""
        return not self.bad


def verify(
    directory: str | Path,
    decode: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Check sizes, digests, tar structure, numbers and every file's checksum; with `decode`, what is in it.

    `workers` are processes. `progress(done, total)` is called with samples. Of tars made by others the
    structure and the labels are covered by the digest alone.
    """
    manifest, bad_samples, done = Manifest.load(directory), [], 0
    check = partial(
        verify_shard, Path(directory), decode=decode, layout=manifest.layout, fields=manifest.fields
    )
    for shard, bad in zip(manifest.shards, map_in_order(check, manifest.shards, workers), strict=True):
        bad_samples += bad
        done += shard.samples
        if progress:
            progress(done, manifest.samples)
    return VerifyReport(
        len(manifest.shards), manifest.samples, sum(s.bytes for s in manifest.shards), tuple(bad_samples)
    )


def verify_shard(
    directory: Path,
    shard: ShardEntry,
    decode: bool = False,
    layout: str = "packed",
    fields: tuple[Field, ...] = IMAGE_AND_LABEL,
) -> list[BadSample]:
    """The defects of one shard; a damaged index hides its samples, a damaged tar does not."""
    try:
        with open(directory / shard.name, "rb") as file:
            tar = Bytes(file.fileno())
            file_problems = _file_problems(shard, tar)
            try:
                index = _index(directory, shard, fields)
            except DataError as error:
                return [*file_problems, BadSample(shard.index_name, "*", f"{error}; samples not checked")]
            samples = (check_samples if layout == "packed" else check_bodies)(shard.name, tar, index, fields)
            return file_problems + list(_bad(shard, samples, fields if decode else ()))
    except OSError as error:
        return [BadSample(shard.name, "*", str(error))]


def _index(directory: Path, shard: ShardEntry, fields: tuple[Field, ...]) -> np.ndarray:
    """The index of a shard; DataError unless it is the manifest's."""
    index = read_index(directory / shard.index_name, fields)
    if len(index) != shard.samples or digest_of(index) != shard.index_sha256:
        raise DataError("SHA-256 differs from the manifest")
    return index


def _file_problems(shard: ShardEntry, tar: Bytes) -> list[BadSample]:
    if len(tar) != shard.bytes:
        return [BadSample(shard.name, "*", f"expected {shard.bytes} bytes, found {len(tar)}")]
    sha256 = hashlib.sha256()
    try:
        for start in range(0, len(tar), PIECE):
            sha256.update(tar[start : start + PIECE])
    except OSError as error:
        return [BadSample(shard.name, "*", f"cannot read it: {error.strerror}, near byte {start}")]
    if sha256.hexdigest() != shard.sha256:
        return [BadSample(shard.name, "*", "SHA-256 differs from the manifest")]
    return []


def _bad(
    shard: ShardEntry, samples: Iterator[Sample | BadSample], decoded: tuple[Field, ...]
) -> Iterator[BadSample]:
    codecs = {field.name: codec_of(field) for field in files_of(decoded)}
    for sample in samples:
        if isinstance(sample, BadSample):
            yield sample
            continue
        for name, codec in codecs.items():
            body = sample.members[name]
            assert isinstance(body, bytes)
            try:
                codec.check(body)
            except DataError as error:
                yield BadSample(shard.name, sample.key, f"{name}: {error}")
