"""Read a split back, every byte of it, and name what is not as the manifest says."""

import hashlib
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data_shards.check import BadSample, Sample, check_samples
from data_shards.errors import DataError
from data_shards.index import Manifest, ShardEntry, read_index
from data_shards.pixels import decode_pixels


@dataclass(frozen=True)
class Report:
    """What `verify` read, and everything that was wrong; `ok` when nothing was."""

    shards: int
    samples: int
    bytes: int
    bad: tuple[BadSample, ...]

    @property
    def ok(self) -> bool:
        """Whether every shard is as the manifest says."""
        return not self.bad


@dataclass(frozen=True)
class Info:
    """A split in numbers: `bytes` of its tars, `samples_per_class` (classes,) int64."""

    manifest: Manifest
    bytes: int
    samples_per_class: np.ndarray


def verify(
    directory: str | Path,
    decode: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check sizes, digests, tar structure, labels and every sample's checksum; with `decode`, its pixels.

    `workers` are threads: hashing and decoding release the GIL. `progress(done, total)` hears of samples.
    """
    manifest, found, done = Manifest.load(directory), [], 0
    with ThreadPoolExecutor(workers) as pool:
        for shard, bad in zip(
            manifest.shards,
            pool.map(partial(verify_shard, Path(directory), decode=decode), manifest.shards),
            strict=True,
        ):
            found += bad
            done += shard.samples
            if progress:
                progress(done, manifest.samples)
    return Report(len(manifest.shards), manifest.samples, sum(s.bytes for s in manifest.shards), tuple(found))


def verify_shard(directory: Path, shard: ShardEntry, decode: bool = False) -> list[BadSample]:
    """Everything wrong with one shard; a damaged index hides its samples, a damaged tar does not."""
    try:
        index = read_index(directory / shard.index_name)
        with (
            open(directory / shard.name, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar,
        ):
            whole = _whole_file_problems(shard, tar)
            if hashlib.sha256(index.data).hexdigest() != shard.index_sha256:
                return [
                    *whole,
                    BadSample(
                        shard.index_name, "*", "SHA-256 differs from the manifest; samples not checked"
                    ),
                ]
            with memoryview(tar) as view:
                good, bad = check_samples(shard.name, view, index)
    except (OSError, ValueError) as error:
        return [BadSample(shard.name, "*", str(error))]
    return whole + bad + (_undecodable(shard, good) if decode else [])


def _whole_file_problems(shard: ShardEntry, tar: mmap.mmap) -> list[BadSample]:
    if len(tar) != shard.bytes:
        return [BadSample(shard.name, "*", f"expected {shard.bytes} bytes, found {len(tar)}")]
    if hashlib.sha256(tar).hexdigest() != shard.sha256:
        return [BadSample(shard.name, "*", "SHA-256 differs from the manifest")]
    return []


def _undecodable(shard: ShardEntry, samples: list[Sample]) -> list[BadSample]:
    bad = []
    for sample in samples:
        try:
            decode_pixels(sample.body)
        except DataError as error:
            bad.append(BadSample(shard.name, sample.key, str(error)))
    return bad


def info(directory: str | Path) -> Info:
    """Count a split from its manifest and indices; no tar is opened."""
    manifest = Manifest.load(directory)
    counts = np.zeros(len(manifest.classes), dtype=np.int64)
    for shard in manifest.shards:
        labels = read_index(Path(directory) / shard.index_name)["label"]
        counts += np.bincount(labels, minlength=len(counts))
    return Info(manifest, sum(shard.bytes for shard in manifest.shards), counts)
