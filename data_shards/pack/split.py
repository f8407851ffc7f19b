"""Split a validation set off a packed split: `split_off("data/x/train", "data/y", val_per_class=50)`.

A sample is drawn by (seed, its checksum), so the choice depends on the images and not on where they lie
in shards. N = samples, C = classes.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import files_of, has_label
from data_shards.format.index import Manifest
from data_shards.format.rng import fold
from data_shards.format.samples import Source
from data_shards.pack.sources.packed import own_names, packed_samples
from data_shards.pack.write import pack
from parallel.counter_rng import mix64_array

SPLIT_KEY = int.from_bytes(b"split")


def choose_validation(labels: np.ndarray, checksums: np.ndarray, val_per_class: int, seed: int) -> np.ndarray:
    """Which samples are for validation: (N,) bool. Of a class with n samples min(val_per_class, n // 2) are.

    So training keeps at least half of every class, and a class of one sample keeps it. A set without labels
    is one class. Args: labels (N,), checksums (N,) uint64.
    """
    ranks = np.lexsort((_draws(checksums, seed), labels))  # by class, then by draw; ties as they lie
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    rank_in_class = np.empty(len(labels), dtype=np.int64)  # of each sample
    rank_in_class[ranks] = np.arange(len(labels)) - starts[labels[ranks]]
    return rank_in_class < np.minimum(val_per_class, counts // 2)[labels]


def _draws(checksums: np.ndarray, seed: int) -> np.ndarray:
    """(N,) uint64: the mix of checksum and seed."""
    return mix64_array(checksums ^ np.uint64(fold(SPLIT_KEY, seed)))


def split_off(
    directory: str | Path,
    out: str | Path,
    val_per_class: int,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[str], Callable[[int, int], None]] | None = None,
) -> dict[str, Manifest]:
    """Write OUT/train and OUT/val from the split in `directory`, in its order and shard size.

    Resumable and byte-identical for any `workers`, as `pack` is. `progress(split)` gives the callback that is
    called with samples. DataError: nothing to choose from, damage in the split.
    """
    if val_per_class < 1:
        raise DataError(f"val_per_class ({val_per_class}) must be at least 1")
    path = Path(directory)
    manifest = Manifest.load(path)
    samples = packed_samples(path, manifest)
    labels = samples.records["label"] if has_label(samples.fields) else np.zeros(len(samples), dtype=np.int64)
    checksums = samples.records[files_of(samples.fields)[0].name]["xxh3"]
    val = choose_validation(labels, checksums, val_per_class, seed)
    if not val.any():
        raise DataError(f"{path}: no class has two samples; there is nothing to split off")
    splits = {"train": samples.select(np.flatnonzero(~val)), "val": samples.select(np.flatnonzero(val))}
    rule = f"{val_per_class} a class for validation out of {manifest.digest[:12]}, seed {seed}"
    text = f"{manifest.writer.source}; {rule}"
    fields, ids = own_names(manifest.fields), manifest.category_ids
    source = Source(manifest.name, text, manifest.classes, splits, fields=fields, category_ids=ids)
    sizes = {"bytes_per_shard": manifest.writer.bytes_per_shard or None}
    sizes["samples_per_shard"] = (
        None if sizes["bytes_per_shard"] else manifest.writer.samples_per_shard or None
    )
    return {
        split: pack(
            source,
            split,
            Path(out) / split,
            workers=workers,
            progress=progress(split) if progress else None,
            shuffle=False,
            check="none",
            **sizes,
        )
        for split in splits
    }
