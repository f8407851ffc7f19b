"""Samples that a function makes of their numbers, for tests that pack a data set of their own."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np


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
