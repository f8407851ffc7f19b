"""Index tars made by others, which are not changed: `index_tars("data/theirs")`.

`GUARANTEES`, which the command prints, states what such a set lacks.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.codecs.registry import codec_of
from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_LABEL, Field, check_fields, has_label
from data_shards.format.files import only_writer, write_errors
from data_shards.format.image_names import HIDDEN, Skipped, is_hidden
from data_shards.format.index import MANIFEST_NAME, Manifest, ShardEntry, Writer, schema_of
from data_shards.format.labels import Label
from data_shards.format.samples import BadSource
from data_shards.pack.members import with_sizes
from data_shards.pack.plan import PLAN_NAME, WRITER_VERSION
from data_shards.pack.process_pool import map_in_order
from data_shards.pack.progress import BAD_NAME, refuse_too_many, write_bad
from data_shards.pack.shard import sha256_of
from data_shards.pack.sources.file_samples import empty_classes
from data_shards.pack.tar_scan import Scan, ScanJob, left_out, no_samples, no_tars, scan_tar
from parallel.durable import atomic_write

MAX_CLASSES = 100_000  # beyond it the labels are captions
SOURCE = "tars made by others, indexed"
GUARANTEES = """\
of tars made by others this is not guaranteed:
  - a shuffled order: the order of samples stays; training interleaves 64 segments, in buffers of 4096 samples
  - intact data from before: checksums state what the tars hold now
  - a repair from the source: it is unknown, so `repair` can leave damaged samples out but not restore them
`swin-moe shards pack --source shards --directory DIR --out NEW` writes a set that has all three"""


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """How tars made by others are indexed.

    split: its name in the manifest.
    fields: the members of a sample.
    image_sizes: record height and width of the image as two more numbers.
    classes: the names of the labels; None takes their numbers, or the names in the tars, sorted.
    label_key: of a .json that is an object, the key of its label.
    check: of every image, see data_shards/pack/reencode.py.
    max_bad: the fraction of damaged samples beyond which indexing stops.
    """

    split: str = "train"
    fields: tuple[Field, ...] = IMAGE_AND_LABEL
    image_sizes: bool = False
    classes: Sequence[str] | None = None
    label_key: str = "label"
    check: str = "decode"
    max_bad: float = 0.001

    @property
    def indexed_fields(self) -> tuple[Field, ...]:
        """The fields of the index; DataError for names and codecs that do not fit."""
        check_fields(self.fields)
        for field in self.fields:
            codec_of(field)
        return with_sizes(self.fields) if self.image_sizes else self.fields


DEFAULT_OPTIONS = IndexOptions()


@dataclass(frozen=True)
class Indexed:
    """The result of `index_tars`: `bad` keys were left out, `notes` name everything else that was.

    classes_per_tar is the mean over the tars, `mixed` what it would be after a shuffle; 0 without labels.
    """

    manifest: Manifest
    bad: tuple[BadSource, ...]
    notes: tuple[str, ...]
    classes_per_tar: float
    mixed: float


def index_tars(
    directory: str | Path,
    out_dir: str | Path | None = None,
    options: IndexOptions = DEFAULT_OPTIONS,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Indexed:
    """Index DIRECTORY/*.tar, sorted by name; the tars are only read.

    Args:
        directory: of the tars.
        out_dir: for indices, manifest and links to the tars, where `directory` cannot be written; None writes
            indices and manifest beside the tars.
        options: see `IndexOptions`.
        workers: processes.
        progress: called with (tars done, all tars).

    Raises:
        DataError: no tars, a damaged one, labels that do not fit together, a directory that `pack` wrote.
    """
    root, out = Path(directory), Path(out_dir or directory)
    skipped, fields = Skipped(), options.indexed_fields
    tars = _tars(root, out, skipped)
    with write_errors(out), only_writer(out):
        job = partial(
            _scan,
            label_key=options.label_key,
            check=options.check,
            fields=fields,
            image_sizes=options.image_sizes,
        )
        scans, digests = [], []
        for scan, sha256 in map_in_order(job, tars, workers):
            scans.append(scan)
            digests.append(sha256)
            skipped.merge(scan.skipped)
            if progress:
                progress(len(scans), len(tars))
        bad = list(left_out(scans))
        if not any(len(scan.index) for scan in scans):
            raise DataError(no_samples(root, bad, skipped, options.fields))
        names, maps = tuple(options.classes or ()), None
        if has_label(fields):
            names, maps = _classes(scans, options.classes)
        refuse_too_many(root, bad, options.max_bad, sum(len(scan.index) for scan in scans) + len(bad))
        if maps is not None:
            scans = [_relabelled(scan, label_map) for scan, label_map in zip(scans, maps, strict=True)]
        entries = [
            _write(out, tar, scan, sha256)
            for tar, scan, sha256 in zip(tars, scans, digests, strict=True)
            if len(scan.index)
        ]
        manifest = _manifest(root.resolve().name, options, names, entries, len(bad))
        if bad:
            write_bad(out, bad)
        else:
            (out / BAD_NAME).unlink(missing_ok=True)  # of an earlier index
        manifest.save(out)
    if maps is None:
        return Indexed(manifest, tuple(bad), tuple(skipped.notes(str(root))), 0.0, 0.0)
    labels = [scan.index["label"] for scan in scans]
    per_tar, mixed = _mixing(labels, len(names))
    empty = empty_classes(names, {options.split: np.concatenate(labels)}, allow_empty=True)
    return Indexed(manifest, tuple(bad), (*skipped.notes(str(root)), *empty), per_tar, mixed)


def _scan(path: Path, **options: Any) -> tuple[Scan, str]:
    sha256 = sha256_of(path)
    if sha256 is None:
        raise DataError(f"{path}: cannot read it; see to it and run the same command again")
    return scan_tar(ScanJob(path, **options)), sha256


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
    """The class names, and for every tar the class of each of each of its label indices."""
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
    class_of = {label: i for i, label in enumerate(values)}
    if missing := sorted(named.keys() - class_of.keys(), key=str):
        what = f"label {missing[0]} ({named[missing[0]]})"
        raise DataError(f"{what} is not among the {len(given)} classes; correct --classes")
    return tuple(given), [{i: class_of[label] for i, label in enumerate(scan.labels)} for scan in scans]


def _relabelled(scan: Scan, label_map: dict[int, int]) -> Scan:
    index = scan.index.copy()
    labels = [label_map[i] for i in range(len(label_map))] or [0]
    index["label"] = np.array(labels, dtype=index["label"].dtype)[index["label"]]
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
    name: str, options: IndexOptions, classes: tuple[str, ...], entries: list[ShardEntry], bad: int
) -> Manifest:
    digest = hashlib.sha256("".join(entry.sha256 for entry in entries).encode()).hexdigest()
    writer = Writer(
        version=WRITER_VERSION,
        source=SOURCE,
        source_digest=digest,
        seed=0,
        quality=95,
        samples_per_shard=0,
        shuffle=False,
        check=options.check,
        image_sizes=options.image_sizes,
    )
    return Manifest(
        schema=schema_of(options.indexed_fields),
        name=name,
        split=options.split,
        samples=sum(entry.samples for entry in entries),
        classes=classes,
        shards=tuple(entries),
        writer=writer,
        layout="indexed",
        bad_sources=bad,
        fields=options.indexed_fields,
    )


def _mixing(labels: Sequence[np.ndarray], num_classes: int) -> tuple[float, float]:
    """Classes in a tar on average, and as many as would be there had the samples been shuffled.

    A class with fraction p of all samples is missed by n shuffled ones with probability (1 - p)^n.
    """
    fractions = np.bincount(np.concatenate(labels), minlength=num_classes)
    fractions = fractions / fractions.sum()
    sizes = [len(tar) for tar in labels if len(tar)]
    expected = [float((1 - (1 - fractions) ** size).sum()) for size in sizes]
    return float(np.mean([len(np.unique(tar)) for tar in labels if len(tar)])), float(np.mean(expected))
