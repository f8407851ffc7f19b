"""Manifest and indices for tars made by others, which stay as they are: `index_tars("data/theirs")`.

What such a set does not have is said in `PROMISES`, which the command prints. S = tars, C = classes.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.format.files import only_writer, write_errors
from data_shards.format.image_names import HIDDEN, Skipped, is_hidden
from data_shards.format.index import MANIFEST_NAME, SCHEMA, Manifest, ShardEntry, Writer
from data_shards.format.labels import Label
from data_shards.format.samples import BadSource
from data_shards.pack.plan import PLAN_NAME, WRITER_VERSION
from data_shards.pack.processes import map_in_order
from data_shards.pack.progress import BAD_NAME, refuse_too_many, write_bad
from data_shards.pack.shard import sha256_of
from data_shards.pack.sources.file_samples import empty_classes
from data_shards.pack.tar_scan import Scan, ScanJob, scan_tar
from data_shards.pack.unusable_tars import left_out, no_samples, no_tars
from parallel.durable import atomic_write

MAX_CLASSES = 100_000  # beyond it the labels are captions
SOURCE = "tars made by others, indexed"
PROMISES = """\
of tars made by others this is not promised:
  - a shuffled order: samples lie as they lay; training mixes 64 places of the set, 4096 samples around each
  - sound data from before now: checksums say what the tars hold today
  - to be made again: no source is known, so `repair` can leave damaged samples out but not bring them back
`swin-moe shards pack --source shards --directory DIR --out NEW` makes a set that has all three"""


@dataclass(frozen=True)
class Indexed:
    """What `index_tars` made; `bad` keys were left out, and `notes` say what else was.

    classes_per_tar is the mean over the tars, and `mixed` what it would be after a shuffle.
    """

    manifest: Manifest
    bad: tuple[BadSource, ...]
    notes: tuple[str, ...]
    classes_per_tar: float
    mixed: float


def index_tars(
    directory: str | Path,
    out_dir: str | Path | None = None,
    *,
    split: str = "train",
    classes: Sequence[str] | None = None,
    label_key: str = "label",
    check: str = "decode",
    max_bad: float = 0.001,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Indexed:
    """Index DIRECTORY/*.tar, sorted by name; the tars are only read.

    `out_dir` gets indices, manifest and links to the tars, for a directory that cannot be written; otherwise
    they go beside the tars. `classes` names the labels; without it they are their numbers, or the names
    found, sorted. `progress(done, total)` hears of tars. DataError: no tars, a damaged one, labels that do
    not fit together, a directory that `pack` wrote.
    """
    root, out = Path(directory), Path(out_dir or directory)
    skipped = Skipped()
    tars = _tars(root, out, skipped)
    with write_errors(out), only_writer(out):
        job = partial(_scan, label_key=label_key, check=check)
        scans, digests = [], []
        for scan, sha256 in map_in_order(job, tars, workers):
            scans.append(scan)
            digests.append(sha256)
            skipped.merge(scan.skipped)
            if progress:
                progress(len(scans), len(tars))
        bad = list(left_out(scans))
        if not any(scan.labels for scan in scans):
            raise DataError(no_samples(root, bad, skipped))
        names, maps = _classes(scans, classes)
        refuse_too_many(root, bad, max_bad, sum(len(scan.index) for scan in scans) + len(bad))
        scans = [_relabelled(scan, places) for scan, places in zip(scans, maps, strict=True)]
        entries = [
            _write(out, *found) for found in zip(tars, scans, digests, strict=True) if len(found[1].index)
        ]
        manifest = _manifest(root.resolve().name, split, names, entries, len(bad), check)
        if bad:
            write_bad(out, bad)
        else:
            (out / BAD_NAME).unlink(missing_ok=True)  # of an earlier index
        manifest.save(out)
    labels = [scan.index["label"] for scan in scans]
    spread, mixed = _mixing(labels, len(names))
    empty = empty_classes(names, {split: np.concatenate(labels)}, allow_empty=True)
    return Indexed(manifest, tuple(bad), (*skipped.notes(str(root)), *empty), spread, mixed)


def _scan(path: Path, label_key: str, check: str) -> tuple[Scan, str]:
    sha256 = sha256_of(path)
    if sha256 is None:
        raise DataError(f"{path}: cannot read it; see to it and run the same command again")
    return scan_tar(ScanJob(path, label_key, check)), sha256


def _tars(root: Path, out: Path, skipped: Skipped) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root}: no such directory")
    tars = []
    for path in sorted(path for path in root.iterdir() if path.suffix.lower() == ".tar"):
        if is_hidden(path.name):
            skipped.add(HIDDEN, path.name)
        else:
            tars.append(path)
    if not tars:
        raise DataError(no_tars(root))
    if (out / PLAN_NAME).exists() or (
        (out / MANIFEST_NAME).exists() and Manifest.load(out).layout == "packed"
    ):
        raise DataError(
            f"{out}: was written by `shards pack`, whose index is better; pass --out to index it anyway"
        )
    stems: dict[str, Path] = {}
    for path in tars:
        index = path.with_suffix(".idx").name
        if (out / index).exists() and not (out / MANIFEST_NAME).exists():
            raise DataError(f"{out / index}: is there already, and another program's (DALI's?); pass --out")
        if stems.setdefault(index, path) != path:
            raise DataError(f"{path} and {stems[index]} would share the index {index}; rename one")
    return tars


def _classes(
    scans: Sequence[Scan], given: Sequence[str] | None
) -> tuple[tuple[str, ...], list[dict[int, int]]]:
    """The class names, and for every tar the class of each of its own label places."""
    named: dict[Label, str] = {}
    for scan in scans:
        for label, member in zip(scan.labels, scan.named, strict=True):
            named.setdefault(label, member)
    numbers = {label for label in named if isinstance(label, int)}
    if numbers and len(numbers) < len(named):
        number, name = (next(lb for lb in named if isinstance(lb, kind)) for kind in (int, str))
        raise DataError(
            f"labels must be all numbers or all names: {named[number]} is {number}, {named[name]} is {name!r}"
        )
    if len(named) > MAX_CLASSES or (numbers and max(numbers) >= MAX_CLASSES):
        largest = max(numbers) if numbers else min(map(str, named))
        what = f"{len(named)} labels, such as {str(largest)[:60]!r} ({named[largest]})"
        raise DataError(f"{what}: are those captions or ids?")
    if given is None:
        given = [str(i) for i in range(max(numbers) + 1)] if numbers else sorted(map(str, named))
    values: Sequence[Label] = range(len(given)) if numbers else given
    place = {label: i for i, label in enumerate(values)}
    if missing := sorted(named.keys() - place.keys(), key=str):
        what = f"label {missing[0]} ({named[missing[0]]})"
        raise DataError(f"{what} is not among the {len(given)} classes; mend --classes")
    return tuple(given), [{i: place[label] for i, label in enumerate(scan.labels)} for scan in scans]


def _relabelled(scan: Scan, places: dict[int, int]) -> Scan:
    index = scan.index.copy()
    index["label"] = np.array([places[i] for i in range(len(places))] or [0], dtype=np.uint32)[index["label"]]
    return replace(scan, index=index)


def _write(out: Path, tar: Path, scan: Scan, sha256: str) -> ShardEntry:
    body = scan.index.tobytes()
    if tar.parent.resolve() != out.resolve() and not (out / tar.name).exists():
        os.symlink(os.path.relpath(tar.resolve(), out.resolve()), out / tar.name)
    atomic_write((out / tar.name).with_suffix(".idx"), body)
    return ShardEntry(
        name=tar.name,
        bytes=tar.stat().st_size,
        samples=len(scan.index),
        sha256=sha256,
        index_sha256=hashlib.sha256(body).hexdigest(),
    )


def _manifest(
    name: str, split: str, classes: tuple[str, ...], entries: list[ShardEntry], bad: int, check: str
) -> Manifest:
    digest = hashlib.sha256("".join(entry.sha256 for entry in entries).encode()).hexdigest()
    fields = {"seed": 0, "quality": 95, "samples_per_shard": 0, "shuffle": False, "check": check}
    writer = Writer(version=WRITER_VERSION, source=SOURCE, source_digest=digest, **fields)  # type: ignore[arg-type]
    return Manifest(
        schema=SCHEMA,
        name=name,
        split=split,
        samples=sum(entry.samples for entry in entries),
        classes=classes,
        shards=tuple(entries),
        writer=writer,
        layout="indexed",
        bad_sources=bad,
    )


def _mixing(labels: Sequence[np.ndarray], num_classes: int) -> tuple[float, float]:
    """Classes in a tar on average, and as many as would be there had the samples been shuffled.

    A class with share p of all samples is missed by n shuffled ones with probability (1 - p)^n.
    """
    shares = np.bincount(np.concatenate(labels), minlength=num_classes)
    shares = shares / shares.sum()
    sizes = [len(tar) for tar in labels if len(tar)]
    expected = [float((1 - (1 - shares) ** size).sum()) for size in sizes]
    return float(np.mean([len(np.unique(tar)) for tar in labels if len(tar)])), float(np.mean(expected))
