"""Tars made by others, without a manifest, read through the `webdataset` library: what it can do, no more.

    stream = WebDatasetStream("/data/x/{000000..000146}.tar", seed=0, ..., num_classes=1000)

The first iteration prints what cannot be promised. B = samples in a micro-batch.
"""

import random
import sys
from collections.abc import Generator, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.augment import TrainTransform
from data_shards.decode import decode_train
from data_shards.draws import Purpose, fold, permutation
from data_shards.errors import DataError
from data_shards.loading import OneIterator, check_divides
from data_shards.prefetch import Batch, BatchPlan, Fetched, Ring, prefetched
from data_shards.storage import SCHEME, SCHEMES

IMAGES = ("jpg", "jpeg", "png", "webp")
STATEMENT = """{place}: no manifest, so webdataset {version} reads these {count} tars. It cannot promise
  exactly-once epochs: each rank reads its share of the tars over and over, mixed in a buffer of {shuffle};
  an exact resume: a resumed run begins a new order;
  the same samples on another number of ranks;
  integrity: nothing is checksummed, and a damaged header hides, without a word, what follows it in its tar.
`swin-moe shards index` writes the manifest with which all of it holds."""


class WebDatasetStream(OneIterator):
    """This rank's micro-batches of tars with KEY.jpg and KEY.cls, without end; part of TrainStream's face.

    Sample i of rank r is cropped as position i * dp_size + r. The buffer holds `shuffle` compressed samples.
    DataError: no such tars, a scheme that is not allowed, a sample without image or label, a label outside
    num_classes, an image that cannot be decoded.
    """

    def __init__(
        self,
        place: str,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
        transform: TrainTransform,
        num_classes: int,
        threads: int = 2,
        prefetch: int = 4,
        shuffle: int = 1000,
    ) -> None:
        check_divides(global_batch_size, micro_batch_size, dp_size)
        self.urls = expand(place)
        self.place, self.seed, self.transform, self.num_classes = place, seed, transform, num_classes
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.dp_rank, self.dp_size, self.shuffle = dp_rank, dp_size, shuffle
        self.threads, self.prefetch = threads, prefetch
        self.grad_accum_steps = global_batch_size // (dp_size * micro_batch_size)
        self.samples, self.wait_s = 0, 0.0
        self._read = 0
        self._bodies: dict[int, tuple[bytes, int]] = {}

    def state_dict(self) -> dict[str, Any]:
        """How many samples were consumed, and that they cannot be told apart."""
        return {"version": 1, "webdataset": self.place, "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on from `state`, in a new order; DataError for a state of other tars."""
        if state.get("webdataset") != self.place:
            raise DataError(
                f"data state: of {state.get('webdataset') or state.get('name')}, not of {self.place}"
            )
        self.close()
        self.samples = int(state["samples"])

    def _stop(self) -> None:
        super()._stop()
        self._bodies.clear()

    def fetch(self, shard: int, row: int) -> Fetched:
        """The compressed image and the label that were read for `row`."""
        return self._bodies.pop(row)

    def decode(self, fetched: Fetched, position: int, shard: int, row: int) -> tuple[np.ndarray, int]:
        """Its picture and its label; DataError when it cannot be decoded."""
        assert not isinstance(fetched, DataError)
        return decode_train(fetched[0], (self.seed, position), self.transform), fetched[1]

    def _batches(self) -> Generator[Batch, None, None]:
        if self.dp_rank == 0:
            said = {"place": self.place, "count": len(self.urls), "shuffle": self.shuffle}
            print(STATEMENT.format(version=version("webdataset"), **said), file=sys.stderr, flush=True)
        batches = prefetched(
            self._plans(),
            self,
            ring=Ring(self.transform.image_size, self.prefetch + 2, pinned=False),
            threads=self.threads,
            fetch_threads=0,
            depth=self.prefetch,
            stall_s=450,
            stalled=lambda: DataError(f"{self.place}: no batch for 450 s"),
        )
        try:
            for handed, (batch, waited_s) in enumerate(batches, 1):
                self.wait_s += waited_s
                if handed % self.grad_accum_steps == 0:
                    self.samples += self.global_batch_size
                yield batch
        finally:
            batches.close()

    def _plans(self) -> Iterator[BatchPlan]:
        first, number = self.samples // self.dp_size, 0
        samples = self._samples(self.samples)
        while True:
            rows = np.arange(number, number + self.micro_batch_size, dtype=np.int64)
            self._bodies |= {int(row): next(samples) for row in rows}
            positions = (first + rows) * self.dp_size + self.dp_rank
            yield BatchPlan(positions=positions, shards=np.zeros_like(rows), rows=rows)
            number += self.micro_batch_size

    def _samples(self, start: int) -> Iterator[tuple[bytes, int]]:
        """Compressed image and label, endlessly, as webdataset reads and shuffles them."""
        from webdataset.filters import shuffle
        from webdataset.tariterators import tarfile_samples

        read = tarfile_samples(self._tars(start))
        mixed = shuffle(self.shuffle, rng=random.Random(fold(self.seed, start, self.dp_rank)))
        for sample in mixed(self._counted(read)):
            yield self._pair(sample)

    def _counted(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            self._read += 1
            yield sample

    def _tars(self, start: int) -> Iterator[dict[str, str]]:
        """This rank's tars, pass after pass: every dp_size-th of a permutation, all where ranks are more."""
        step = self.dp_size if len(self.urls) >= self.dp_size else 1
        turn, before = 0, -1
        while before < self._read:
            before = self._read
            order = permutation(len(self.urls), Purpose.SHARDS, self.seed, start, turn)
            for i in order[self.dp_rank % step :: step].tolist():
                yield {"url": self.urls[i]}
            turn += 1
        raise DataError(f"{self.place}: no samples in these tars")

    def _pair(self, sample: dict[str, Any]) -> tuple[bytes, int]:
        where = f"{sample.get('__url__')}: sample {sample.get('__key__')}"
        image = next((sample[suffix] for suffix in IMAGES if suffix in sample), None)
        label = sample.get("cls", b"").strip()
        if image is None or not label.isdigit() or int(label) >= self.num_classes:
            said = f"has {'an' if image else 'no'} image and the label {label!r}"
            raise DataError(f"{where}: {said}; it needs one, and a label below {self.num_classes}")
        return image, int(label)


def expand(place: str) -> list[str]:
    """The tars that a name with {000..146} means; DataError when one is not allowed or not there."""
    from braceexpand import braceexpand

    urls = [place] if place.startswith("pipe:") else list(braceexpand(place))
    for url in urls:
        scheme = SCHEME.match(url)
        if scheme and scheme[1].lower() not in SCHEMES:
            raise DataError(f"{url}: scheme {scheme[1]} is not allowed; use a path or {', '.join(SCHEMES)}")
        if not scheme and not Path(url).is_file():
            raise DataError(f"{url}: no such tar; check the pattern {place}")
    return urls
