"""Pack a split of a source into shards: `manifest = pack(source, "train", "data/x/train", seed=0)`.

Shard i holds the samples [i*S, (i+1)*S) of one seeded permutation of the split, so it is a pure function of
(source, seed, quality, S, i): any number of workers writes the same bytes, and an interrupted run goes on
where it was.

    pack.json       what is being packed here; replaced by manifest.json at the end
    .NAME.PID.tmp   a file being written; fsynced, then renamed, so that NAME is whole or absent
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import xxhash

from data_shards.check import check_samples
from data_shards.draws import Purpose, permutation
from data_shards.errors import DataError
from data_shards.files import atomic_write, only_writer, sweep_temporaries, write_errors
from data_shards.index import (
    MANIFEST_NAME,
    RECORD,
    SCHEMA,
    Manifest,
    ShardEntry,
    Writer,
    canonical_json,
    check_shards,
    read_index,
    read_json,
)
from data_shards.sources import Samples, Source
from data_shards.tar import BLOCK, END_OF_ARCHIVE, member

WRITER_VERSION = 1
PLAN_NAME = "pack.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All that a worker needs to write one shard; `first_key` is the global rank of its first sample."""

    directory: Path
    name: str
    first_key: int
    samples: Samples
    quality: int
    num_classes: int


def pack(
    source: Source,
    split: str,
    out_dir: str | Path,
    *,
    samples_per_shard: int = 1000,
    seed: int = 0,
    quality: int = 95,
    workers: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Write `split` of `source` to `out_dir` as shards, indices and, last, a manifest, which is returned.

    Run again after an interruption, it verifies and keeps finished shards; run again after the end, it
    returns the manifest that is there. `progress(done, total)` hears of samples. DataError: a bad option,
    another pack in `out_dir` (finished, partial or running), no permission or space.
    """
    _check_options(source, split, samples_per_shard=samples_per_shard, quality=quality, workers=workers)
    samples, out = source.splits[split], Path(out_dir)
    writer = Writer(
        version=WRITER_VERSION,
        seed=seed,
        quality=quality,
        samples_per_shard=samples_per_shard,
        source=source.description,
        source_digest=samples.digest,
    )
    plan = _plan(source, split, writer)
    with write_errors(out), only_writer(out):
        if finished := _accept_plan(out, plan):
            return finished
        sweep_temporaries(out)
        jobs = _jobs(samples, out, writer, len(source.classes))
        shards = [asdict(shard) for shard in _run(jobs, workers, len(samples), progress)]
        manifest = Manifest.from_dict(plan | {"shards": shards}, out / MANIFEST_NAME)
        atomic_write(out / MANIFEST_NAME, json.dumps(asdict(manifest), indent=1).encode())
        (out / PLAN_NAME).unlink(missing_ok=True)
    return manifest


def _check_options(source: Source, split: str, *, samples_per_shard: int, quality: int, workers: int) -> None:
    if split not in source.splits:
        raise DataError(f"split: {source.name} has {', '.join(source.splits)} (got {split!r})")
    if not len(source.splits[split]):
        raise DataError(f"split: {split} of {source.name} has no samples; leave it out of --splits")
    for option, value in {"samples_per_shard": samples_per_shard, "workers": workers}.items():
        if value < 1:
            raise DataError(f"{option} ({value}) must be at least 1")
    if not 1 <= quality <= 100:
        raise DataError(f"quality ({quality}) must be in 1 ... 100")


def _plan(source: Source, split: str, writer: Writer) -> dict[str, Any]:
    """Everything that the manifest will say except its shards, as it reads back from JSON."""
    fields = {"schema": SCHEMA, "name": source.name, "split": split, "samples": len(source.splits[split])}
    return fields | {"classes": list(source.classes), "writer": asdict(writer)}


def _accept_plan(out: Path, plan: dict[str, Any]) -> Manifest | None:
    """The finished manifest of this very plan if all of it is there; otherwise `out` is claimed for it."""
    if (out / MANIFEST_NAME).exists():
        manifest = Manifest.load(out)
        found = {key: value for key, value in asdict(manifest).items() if key != "shards"}
        _refuse_other_plan(out, found | {"classes": list(manifest.classes)}, plan)
        try:
            check_shards(manifest, out)
        except DataError:
            return None  # the same plan with something missing: packing again writes exactly that
        return manifest
    if (out / PLAN_NAME).exists():
        _refuse_other_plan(out, read_json(out / PLAN_NAME), plan)
    elif strangers := sorted(path.name for path in out.glob("*.tar")):
        raise DataError(f"{out}: holds {strangers[0]} but no {PLAN_NAME}; pass another --out, or delete it")
    atomic_write(out / PLAN_NAME, canonical_json(plan).encode())
    return None


def _refuse_other_plan(out: Path, found: dict[str, Any], plan: dict[str, Any]) -> None:
    there, asked = (fields | fields["writer"] for fields in (found, plan))
    keys = [key for key in asked if key != "writer" and there.get(key) != asked[key]]
    if keys:
        text = "; ".join(
            f"{key}: {str(there.get(key))[:50]!r} there, {str(asked[key])[:50]!r} asked" for key in keys
        )
        raise DataError(f"{out}: another pack is there ({text}); pass another --out, or delete {out}")


def _jobs(samples: Samples, out: Path, writer: Writer, num_classes: int) -> Iterator[ShardJob]:
    """One job a shard, made when it is asked for: a job carries its samples."""
    ranks = permutation(len(samples), Purpose.PACK, writer.seed)
    for shard, start in enumerate(range(0, len(samples), writer.samples_per_shard)):
        yield ShardJob(
            directory=out,
            name=f"{shard:06d}.tar",
            first_key=start,
            samples=samples.select(ranks[start : start + writer.samples_per_shard]),
            quality=writer.quality,
            num_classes=num_classes,
        )


def _run(jobs: Iterator[ShardJob], workers: int, total: int, progress: Progress | None) -> list[ShardEntry]:
    entries, done = [], 0
    for entry in map(make_shard, jobs) if workers == 1 else _in_processes(jobs, workers):
        entries.append(entry)
        done += entry.samples
        if progress:
            progress(done, total)
    return entries


def _in_processes(jobs: Iterator[ShardJob], workers: int) -> Iterator[ShardEntry]:
    """The entries in order, with at most two jobs a worker under way, so that memory stays bounded."""
    pending: deque[Future[ShardEntry]] = deque()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(make_shard, job))
                if len(pending) >= 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a pack worker died (out of memory?); run the same command again, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def make_shard(job: ShardJob) -> ShardEntry:
    """Write a shard and its index, or keep the ones that are there when every sample in them is sound."""
    return _existing_shard(job) or _write_shard(job)


def _existing_shard(job: ShardJob) -> ShardEntry | None:
    """The entry of a shard left by an earlier run; None unless its bytes prove that it is whole."""
    path = job.directory / job.name
    try:
        tar, index = path.read_bytes(), read_index(path.with_suffix(".idx"))
    except (DataError, FileNotFoundError):
        return None
    good, bad = check_samples(job.name, tar, index)
    keys = [sample.key for sample in good]
    if bad or keys != [_key(job, row) for row in range(len(job.samples))]:
        return None
    return _entry(job, len(tar), hashlib.sha256(tar).hexdigest(), index)


def _write_shard(job: ShardJob) -> ShardEntry:
    tar, index = bytearray(), np.zeros(len(job.samples), dtype=RECORD)
    for row in range(len(job.samples)):
        image, label = job.samples[row]
        body = _encode(image, label, job)
        index[row] = (len(tar) + BLOCK, len(body), label, xxhash.xxh3_64_intdigest(body))
        tar += member(f"{_key(job, row)}.jpg", body) + member(f"{_key(job, row)}.cls", str(label).encode())
    tar += END_OF_ARCHIVE
    path = job.directory / job.name
    with write_errors(job.directory):
        atomic_write(path, tar)
        atomic_write(path.with_suffix(".idx"), index.tobytes())
    return _entry(job, len(tar), hashlib.sha256(tar).hexdigest(), index)


def _key(job: ShardJob, row: int) -> str:
    return f"{job.first_key + row:08d}"


def _entry(job: ShardJob, size: int, sha256: str, index: np.ndarray) -> ShardEntry:
    index_sha256 = hashlib.sha256(index.tobytes()).hexdigest()
    return ShardEntry(name=job.name, bytes=size, samples=len(index), sha256=sha256, index_sha256=index_sha256)


def _encode(image: np.ndarray | bytes, label: int, job: ShardJob) -> bytes:
    if not 0 <= label < job.num_classes:
        raise DataError(
            f"{job.name}: label {label} must be in 0 ... {job.num_classes - 1}; mend the source's labels"
        )
    if isinstance(image, bytes):
        return image
    if image.ndim == 2:
        pixels = np.ascontiguousarray(image[:, :, None])
        return simplejpeg.encode_jpeg(pixels, quality=job.quality, colorspace="GRAY", colorsubsampling="Gray")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=job.quality, colorsubsampling="444")
