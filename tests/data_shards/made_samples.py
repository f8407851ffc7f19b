"""Samples that a function makes of their numbers, for tests that pack a data set of their own."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from data_shards.format.fields import Field
from data_shards.format.samples import Source
from data_shards.pack.write import pack


@dataclass(frozen=True)
class MadeSamples:
    """The samples `make(row)` of the `rows` (N,), without labels."""

    make: Callable[[int], Mapping[str, Any]]  # of a module, so that another process gets it
    rows: np.ndarray
    bytes_each: int = 1000

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        return self.make(int(self.rows[i]))

    def select(self, rows: np.ndarray) -> Self:
        return replace(self, rows=self.rows[rows])

    def describe(self, i: int) -> str:
        return f"sample {self.rows[i]}"

    def label(self, i: int) -> int:
        return -1

    def sizes(self) -> np.ndarray:
        return np.full(len(self), self.bytes_each, dtype=np.int64)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.rows.tobytes()).hexdigest()


def pack_made(
    make: Callable[[int], Mapping[str, Any]],
    out: Path,
    train: int,
    val: int,
    *,
    classes: Sequence[str],
    fields: tuple[Field, ...],
    category_ids: tuple[int, ...] = (),
    samples: type[MadeSamples] = MadeSamples,
) -> Path:
    """Pack so many made samples to train on and to evaluate into `out`/train and `out`/val; returns `out`."""
    rows = {"train": np.arange(train), "val": np.arange(10_000, 10_000 + val)}
    splits = {split: samples(make, numbers) for split, numbers in rows.items()}
    source = Source("made", "made samples", tuple(classes), splits, fields=fields, category_ids=category_ids)
    for split in splits:
        pack(source, split, out / split, samples_per_shard=16)
    return out
