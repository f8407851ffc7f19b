"""A split as a stream reads it: manifest, reader, cache, quarantine, and threads that fetch shards ahead."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.format.classes import label_map
from data_shards.format.index import MANIFEST_NAME
from data_shards.storage import storage_for
from data_shards.storage.base import Storage
from data_shards.storage.cache import ShardCache
from data_shards.storage.manifest import load_manifest
from data_shards.storage.retry import Retries
from data_shards.stream.options import StreamOptions
from data_shards.stream.quarantine import Quarantine
from data_shards.stream.reader import SampleError, ShardReader
from data_shards.stream.shard_prefetcher import ShardPrefetcher
from data_shards.stream.workers import Fetched

Place = str | Path | Storage


class Split:
    """One split of a stream.

    Args:
        place: a directory, a URL or a Storage.
        fields: the members that are read of a sample.
        options: of the stream.
        retries: of all splits of the stream.
        optional: members that are read, too, if the samples have them.

    Raises:
        DataError: a bad split, or one without these members.
    """

    def __init__(
        self,
        place: Place,
        fields: Sequence[str],
        options: StreamOptions,
        retries: Retries,
        optional: Sequence[str] = (),
    ) -> None:
        self.read = options.read
        self.storage = storage_for(place, options.read.deadline_s)
        self.manifest = load_manifest(self.storage, retries)
        self.classes = self.manifest.classes
        self.quarantine = Quarantine(options.quarantine, self.manifest)
        self.cache = self._make_cache(retries) if options.read.cache is not None else None
        self.reader = ShardReader(
            self.storage,
            self.manifest,
            cache=self.cache,
            retries=retries,
            notice=self.quarantine.notice,
        )
        self.reader.check_members(fields)
        there = [field.name for field in self.manifest.fields]
        self.fields = (*fields, *(name for name in optional if name in there))
        self._label_map: np.ndarray | None = None  # (classes of the manifest,) int64, where labels are mapped
        self._prefetcher: ShardPrefetcher | None = None

    def map_labels(self, classes: Sequence[str]) -> None:
        """Map labels by name to `classes`; DataError for a class of the split that is not among them."""
        if tuple(classes) == self.classes:
            return
        try:
            self._label_map = label_map(self.manifest.classes, classes)
        except DataError as error:
            raise DataError(f"{self.storage.describe(MANIFEST_NAME)}: {error}") from error
        self.classes = tuple(classes)

    def labels(self) -> np.ndarray:
        """The label of every sample, in index order: (samples,) int64; reads every index."""
        labels = np.concatenate([self.reader.labels(shard) for shard in range(len(self.manifest.shards))])
        if (highest := int(labels.max())) >= len(self.manifest.classes):
            where = self.storage.describe(MANIFEST_NAME)
            raise DataError(f"{where}: {self._unknown(highest)}; pack or index the shards again")
        return labels if self._label_map is None else self._label_map[labels]

    def fetch(self, shard: int, row: int) -> Fetched:
        """The members of a sample, as they are stored, its label mapped; or its error."""
        try:
            members = self.reader.read(shard, row, self.fields)
        except SampleError as error:
            return error
        label = members.get("label")
        if not isinstance(label, int):
            return members
        if self.manifest.classes and label >= len(self.manifest.classes):
            return self.reader.bad_sample(shard, row, self._unknown(label))
        if self._label_map is not None:
            members["label"] = int(self._label_map[label])
        return members

    def _unknown(self, label: int) -> str:
        return f"label {label} is none of the {len(self.manifest.classes)} classes of the manifest"

    def announce(self, shards: list[int]) -> None:
        """Fetch these shards, soonest first, into the cache; close those that are open."""
        if self.cache:
            self.reader.close()
            self._prefetcher = self._prefetcher or ShardPrefetcher(self.cache, self.read.cache_threads)
            self._prefetcher.announce(shards)

    def cacheable(self, share: float = 1) -> int:
        """How many shards ahead to announce: twice what a share of the cache holds."""
        sizes = [shard.bytes for shard in self.manifest.shards]
        return 1 + int(2 * self.read.cache_bytes * share * len(sizes)) // sum(sizes)

    def stop_fetching(self) -> None:
        """Join the threads that fetch ahead."""
        if self._prefetcher:
            self._prefetcher.close()
            self._prefetcher = None

    def close(self) -> None:
        """Close the shards; reading opens them again."""
        self.reader.close()
        if self.cache:
            self.cache.close()

    def _make_cache(self, retries: Retries) -> ShardCache:
        assert self.read.cache is not None
        return ShardCache(
            self.read.cache,
            self.read.cache_bytes,
            self.storage,
            self.manifest,
            retries=retries,
            notice=self.quarantine.notice,
        )
