"""Writing one shard: a pure function of its job, in any process. A job has the samples, a record the result.

A permanently damaged sample is left out and named in the record; its key stays unused. So a shard may have
fewer samples than planned, even none (then it has no files), and still its bytes do not depend on which task
writes it, or when.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import Field, Sample, has_label
from data_shards.format.files import write_errors
from data_shards.format.index import ShardEntry, digest_of
from data_shards.format.samples import BadSource, BadSourceError, Samples
from data_shards.format.tar import write_samples
from data_shards.pack.members import prepare_members
from data_shards.pack.reencode import Recipe
from parallel.durable import atomic_file, atomic_write


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A finished shard: its number, its entry in the manifest, the samples that were left out of it."""

    shard: int
    entry: ShardEntry
    bad: tuple[BadSource, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """The input of a worker; `first_key` is the rank of its first sample in the split.

    `record` is the result of an earlier run. With `expected`, a shard with another entry is refused.
    """

    directory: Path
    shard: int
    first_key: int
    samples: Samples
    recipe: Recipe
    num_classes: int
    fields: tuple[Field, ...]
    record: ShardRecord | None = None
    expected: ShardEntry | None = None

    @property
    def name(self) -> str:
        """The file name of the tar."""
        return f"{self.shard:06d}.tar"


def make_shard(job: ShardJob) -> ShardRecord:
    """Write a shard and its index, or keep the ones that are there when their bytes are the recorded ones."""
    return _kept(job) or write_shard(job)


def _kept(job: ShardJob) -> ShardRecord | None:
    """The record of an earlier run, if both files have its SHA-256 and its bad samples are still bad."""
    if job.record is None:
        return None
    entry = job.record.entry
    wanted = {entry.name: entry.sha256, entry.index_name: entry.index_sha256} if entry.samples else {}
    if any(sha256_of(job.directory / name) != sha256 for name, sha256 in wanted.items()):
        return None
    return job.record if all(_is_bad_still(job, source) for source in job.record.bad) else None


def _is_bad_still(job: ShardJob, source: BadSource) -> bool:
    """Whether a sample that an earlier run left out is still bad: it may have been repaired."""
    try:
        prepare_members(job.samples[int(source.key) - job.first_key], job.fields, job.recipe)
    except BadSourceError:
        return True
    return False


def sha256_of(path: Path) -> str | None:
    """SHA-256 of a file, in hex; None when there is no such file or it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def write_shard(job: ShardJob) -> ShardRecord:
    """Write the tar, then its index; DataError unless the result is the `expected` one: no file then."""
    bad: list[BadSource] = []
    path, sha256 = job.directory / job.name, hashlib.sha256()
    with write_errors(job.directory):
        try:
            with atomic_file(path) as handle:
                index = write_samples(handle, _intact(job, bad), sha256, job.fields)
                entry = _entry(job.name, os.fstat(handle).st_size, sha256.hexdigest(), index)
                if job.expected and entry != job.expected:
                    raise DataError(_differs(job, bad))
                if not len(index):
                    raise _EmptyShardError
        except _EmptyShardError:
            path.unlink(missing_ok=True)
            path.with_suffix(".idx").unlink(missing_ok=True)
        else:
            atomic_write(path.with_suffix(".idx"), index.tobytes())
    return ShardRecord(shard=job.shard, entry=entry, bad=tuple(bad))


class _EmptyShardError(Exception):
    """Every sample of this shard was left out."""


def _intact(job: ShardJob, bad: list[BadSource]) -> Iterator[Sample]:
    """Every intact sample; the others are added to `bad`."""
    labelled = has_label(job.fields)
    for row in range(len(job.samples)):
        key = f"{job.first_key + row:08d}"
        try:
            members = prepare_members(job.samples[row], job.fields, job.recipe)
        except BadSourceError as error:
            reason = " ".join(str(error).split())
            bad.append(BadSource(key, job.samples.describe(row), job.samples.label(row), reason))
            continue
        if labelled and not 0 <= int(members["label"]) < job.num_classes:
            raise DataError(
                f"{job.name}: label {int(members['label'])} must be in 0 ... {job.num_classes - 1}; "
                "correct the labels of the source"
            )
        yield Sample(key, members)


def _differs(job: ShardJob, bad: list[BadSource]) -> str:
    reason = f"{bad[0].source} is {bad[0].reason}" if bad else "other images, or another JPEG library"
    return f"{job.name}: this source no longer gives the packed bytes ({reason}); use --drop-to instead"


def _entry(name: str, size: int, sha256: str, index: np.ndarray) -> ShardEntry:
    return ShardEntry(name=name, bytes=size, samples=len(index), sha256=sha256, index_sha256=digest_of(index))
