"""Statistics of a split, from its manifest and its indices; no tar is opened. C = classes, N = samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.format.fields import files_of, has_label
from data_shards.format.index import Manifest, read_index

BAR = 40  # characters of the longest bar of a histogram


@dataclass(frozen=True)
class Info:
    """`bytes` of the tars; samples_per_class (C,) int64; sizes (N,) uint32 of the files of each member."""

    manifest: Manifest
    bytes: int
    samples_per_class: np.ndarray
    sizes: dict[str, np.ndarray]

    def lines(self, classes: int = 30) -> Iterator[str]:
        """A summary for the command, with at most `classes` of the classes, the smallest."""
        manifest, counts = self.manifest, self.samples_per_class
        shards = np.array([shard.bytes for shard in manifest.shards])
        tars = f"{len(shards)} shard{'s' * (len(shards) != 1)}"
        yield f"{manifest.samples} samples, {tars}, {self.bytes / 2**20:.1f} MiB"
        order = (
            f"shuffled with seed {manifest.writer.seed}"
            if manifest.writer.shuffle
            else "in the source's order"
        )
        yield f"source {manifest.writer.source}; {order}; manifest {manifest.digest}"
        if manifest.layout != "packed":
            yield "tars made by others, indexed: their order is not shuffled by us"
        if manifest.bad_sources:
            yield f"{manifest.bad_sources} damaged sources were left out, see bad_sources.tsv"
        if manifest.parent:
            yield f"made from manifest {manifest.parent}"
        yield f"shards: {_spread(shards / 2**20)} MiB, {_spread(manifest.samples_per_shard)} samples"
        for name, sizes in self.sizes.items():
            what = "images" if name == "image" else name
            yield f"{what}: {_spread(sizes / 2**10)} KiB"
            yield from histogram(sizes)
        if numbers := [field.name for field in manifest.fields if field.is_scalar and field.name != "label"]:
            yield f"numbers in the index: {', '.join(numbers)}"
        if not has_label(manifest.fields):
            return
        yield f"classes: {len(counts)}, of {_spread(counts)} samples; {int((counts == 0).sum())} are empty"
        if len(counts) > classes:
            yield f"the {classes} smallest:"
        for label in np.sort(np.argsort(counts, kind="stable")[:classes]).tolist():
            yield f"  {counts[label]:8d}  {manifest.classes[label]}"


def _spread(values: np.ndarray) -> str:
    """The least, the median and the most; one number where they are equal."""
    low, middle, high = (f"{number:.4g}" for number in np.quantile(values, [0, 0.5, 1]))
    return low if low == high else f"{low} to {high} (median {middle})"


def histogram(sizes: np.ndarray) -> Iterator[str]:
    """Images by size in bytes, in powers of two: a line and a bar each."""
    powers = np.frexp(np.maximum(sizes, 1).astype(np.float64))[1] - 1  # floor(log2)
    counts = np.bincount(powers)
    for power in range(int(powers.min()), len(counts)):
        bar = "#" * -(-int(counts[power]) * BAR // int(counts.max()))
        low, high = _binary(2**power), _binary(2 ** (power + 1))
        yield f"  {low:>8} ... {high:>8} {counts[power]:10d}  {bar}".rstrip()


def _binary(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def info(directory: str | Path) -> Info:
    """Count a split; DataError when its manifest or an index cannot be read."""
    manifest = Manifest.load(directory)
    sizes: dict[str, list[np.ndarray]] = {field.name: [] for field in files_of(manifest.fields)}
    counts = np.zeros(len(manifest.classes), dtype=np.int64)
    for shard in manifest.shards:
        index = read_index(Path(directory) / shard.index_name, manifest.fields)
        if has_label(manifest.fields):
            counts += np.bincount(index["label"], minlength=len(counts))
        for name, found in sizes.items():
            found.append(np.array(index[name]["size"]))
    total = sum(shard.bytes for shard in manifest.shards)
    return Info(manifest, total, counts, {name: np.concatenate(found) for name, found in sizes.items()})
