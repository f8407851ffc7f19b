"""Repair a damaged split: from its source, byte for byte, or as a new set that lacks the damaged samples.

A file of the split is only ever replaced by the bytes that its manifest names. A new set lies in another
directory, with a list of what was left out, another manifest and so another identity.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.format.check import BadSample, Bytes, check_bodies, check_samples
from data_shards.format.fields import Field, Sample, has_label
from data_shards.format.files import only_writer, write_errors
from data_shards.format.index import MANIFEST_NAME, Manifest, ShardEntry, digest_of, read_index
from data_shards.format.samples import BadSource, Source
from data_shards.format.tar import write_samples
from data_shards.pack.plan import PLAN_NAME, cut
from data_shards.pack.process_pool import map_in_order
from data_shards.pack.progress import read_bad, write_bad
from data_shards.pack.shard import sha256_of, write_shard
from data_shards.pack.tar_scan import ScanJob, scan_tar
from data_shards.pack.write import PackTask
from data_shards.verify.origins import packed_from
from data_shards.verify.verify import verify
from parallel.durable import atomic_file, atomic_write

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Repair:
    """The result: indices and shards written again, samples left out of the new set, and remaining defects.

    `remaining` is empty when the directory, or the new set if one was requested, is intact.
    """

    reindexed: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    dropped: tuple[BadSource, ...] = ()
    remaining: tuple[BadSample, ...] = ()


def repair(
    directory: str | Path,
    *,
    source: Source | None = None,
    drop_to: str | Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Repair:
    """Verify the split, then restore what is damaged: indices from their tars, shards from `source`.

    With `drop_to`, a new set in that directory: intact shards are linked, damaged ones without their bad
    samples. DataError: another source than the packed one, or one that gives other bytes now.
    """
    if source and drop_to:
        raise DataError("--source brings samples back, --drop-to does without them: give one")
    out = Path(directory)
    manifest = Manifest.load(out)
    bad = verify(out, workers=workers, progress=progress).bad
    with write_errors(out), only_writer(out):
        reindexed = tuple(e.index_name for e in _damaged(manifest, bad) if _reindex(out, manifest, e))
        damaged = _damaged(manifest, [b for b in bad if b.shard not in reindexed])
        if source and damaged:
            _from_source(out, manifest, source, damaged, workers)
    remaining = tuple(b for b in bad if b.shard not in reindexed and not (source and damaged))
    done = Repair(reindexed, tuple(entry.name for entry in damaged) if source else (), (), remaining)
    if drop_to and damaged:
        return replace(done, dropped=_without(out, manifest, damaged, Path(drop_to)), remaining=())
    return done


def _damaged(manifest: Manifest, bad: Iterable[BadSample]) -> list[ShardEntry]:
    names = {b.shard for b in bad}
    return [entry for entry in manifest.shards if {entry.name, entry.index_name} & names]


def _reindex(out: Path, manifest: Manifest, entry: ShardEntry) -> bool:
    """Rebuild an index from its tar, if that is intact and gives exactly the index of the manifest."""
    if sha256_of(out / entry.index_name) == entry.index_sha256 or sha256_of(out / entry.name) != entry.sha256:
        return False
    indexed, writer = manifest.layout == "indexed", manifest.writer
    scan = scan_tar(
        ScanJob(
            out / entry.name,
            fields=manifest.fields,
            check=writer.check if indexed else "none",
            image_sizes=writer.image_sizes and indexed,
        )
    )
    index, names = scan.index.copy(), {name: i for i, name in enumerate(manifest.classes)}
    if has_label(manifest.fields):
        labels = [label if isinstance(label, int) else names.get(label, 0) for label in scan.labels]
        index["label"] = [labels[i] for i in index["label"]]
    if digest_of(index) != entry.index_sha256:
        return False
    atomic_write(out / entry.index_name, index.tobytes())
    return True


def _from_source(
    out: Path, manifest: Manifest, source: Source, damaged: list[ShardEntry], workers: int
) -> None:
    """Write the damaged shards again; each must come out as the manifest has it."""
    samples, options, fields, ranks = packed_from(out, manifest, source, "; repair it with --drop-to instead")
    task = PackTask(
        out=out,
        samples=samples,
        num_classes=len(manifest.classes),
        fields=fields,
        options=options,
        starts=cut(samples, ranks, options, fields),
        ranks=ranks,
        task=(0, 1),
    )
    jobs = (replace(task.job(int(Path(entry.name).stem)), expected=entry) for entry in damaged)
    for _ in map_in_order(write_shard, jobs, workers):
        pass


def _without(out: Path, manifest: Manifest, damaged: list[ShardEntry], new: Path) -> tuple[BadSource, ...]:
    """Make the set `new` of everything in `out` that is intact; the samples that it lacks."""
    if (new / MANIFEST_NAME).exists() or (new / PLAN_NAME).exists():
        raise DataError(f"{new}: holds shards already; pass another --drop-to")
    dropped: list[BadSource] = []
    entries = []
    with write_errors(new), only_writer(new):
        for entry in manifest.shards:
            kept: ShardEntry | None = entry
            if entry in damaged:
                kept = _intact_part(out, manifest, entry, new, dropped)
            else:
                _link(out / entry.name, new / entry.name)
                _link(out / entry.index_name, new / entry.index_name)
            entries += [kept] if kept else []
        if not entries:
            raise DataError(f"{out}: no intact sample is left")
        before = read_bad(out) if manifest.bad_sources else []
        write_bad(new, [*before, *dropped])
        count = sum(entry.samples for entry in entries)
        changed = replace(manifest, shards=tuple(entries), samples=count, parent=manifest.digest)
        replace(changed, bad_sources=len(before) + len(dropped)).save(new)
    return tuple(dropped)


def _link(path: Path, new: Path) -> None:
    """The same file under another name; a copy where the file system has no such thing."""
    new.unlink(missing_ok=True)
    try:
        os.link(path.resolve(), new)
    except OSError:
        shutil.copyfile(path, new)


def _intact_part(
    out: Path, manifest: Manifest, entry: ShardEntry, new: Path, dropped: list[BadSource]
) -> ShardEntry | None:
    """Write a damaged shard's intact samples to `new`; None when no sample can be identified."""
    try:
        index = read_index(out / entry.index_name, manifest.fields)
        if digest_of(index) != entry.index_sha256:
            raise DataError("its index is damaged too")
        with open(out / entry.name, "rb") as file:
            tar = Bytes(file.fileno())
            if manifest.layout == "packed":
                checked = list(check_samples(entry.name, tar, index, manifest.fields))
            else:
                checked = list(check_bodies(entry.name, tar, index, manifest.fields))
    except (OSError, DataError) as error:
        reason = " ".join(f"{error}; all its {entry.samples} samples are lost".split())
        dropped.append(BadSource("*", entry.name, -1, reason))
        return None
    rows = checked[: len(index)]
    labels = index["label"].tolist() if has_label(manifest.fields) else [-1] * len(index)
    dropped += [
        BadSource(bad.key, bad.shard, label, bad.reason)
        for bad, label in zip(rows, labels, strict=True)
        if isinstance(bad, BadSample)
    ]
    good = [row for row, sample in enumerate(rows) if isinstance(sample, Sample)]
    if not good:
        return None
    if manifest.layout == "indexed":  # its tar is not ours to write
        _link(out / entry.name, new / entry.name)
        kept = index[good]
    else:
        intact = [sample for sample in rows if isinstance(sample, Sample)]
        kept = _rewrite(new / entry.name, intact, manifest.fields)
    atomic_write(new / entry.index_name, kept.tobytes())
    return _entry_of(new, entry.name, len(good))


def _rewrite(path: Path, samples: list[Sample], fields: tuple[Field, ...]) -> np.ndarray:
    with atomic_file(path) as handle:
        return write_samples(handle, samples, fields=fields)


def _entry_of(new: Path, name: str, samples: int) -> ShardEntry:
    digests = sha256_of(new / name), sha256_of((new / name).with_suffix(".idx"))
    assert digests[0]
    assert digests[1]
    size = (new / name).stat().st_size
    return ShardEntry(name=name, bytes=size, samples=samples, sha256=digests[0], index_sha256=digests[1])
