"""The stream of training samples, without end.

    sampling = TrainSampling(seed=0, global_batch_size=64, micro_batch_size=16)
    options = StreamOptions(dp_rank=0, dp_size=2)
    stream = TrainStream("data/x/train", sampling, LabelledImages(TrainTransform(image_size=32)), options)
    for batch in stream: ...                      # 64 / (2 * 16) = 2 micro-batches an optimizer step

The life of a sample:

    1. order     position -> (shard, row)                        order/global_order.py: GlobalOrder.locate
                 of several sets                                 order/weighted.py: WeightedOrder.locate
    2. plan      the positions of this rank's micro-batches       here: TrainStream._plans
    3. fetch     (shard, row) -> the members that are needed      split.py: Split.fetch; reader.py
                 from the cache or the storage, checksum checked  storage/cache.py, storage/base.py
    4. decode    members, key (seed, position) -> example         base.py: Stream.decode; transform.py
                 a bad sample is replaced                         here: TrainStream._replace
    5. batch     examples -> tensors, positions, weights          workers.py: _fill; collate.py, batch.py
    6. device    RandAugment, normalize, erase, mixup             augment/pipeline.py, called by the task

Threads carry out steps 3 to 5 ahead of the consumer (workers.py).
"""

import warnings
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.order.sampling import TrainSampling
from data_shards.order.sets import TrainSet
from data_shards.order.state import check_state, joined_digest, make_state
from data_shards.order.weighted import check_alike, make_order
from data_shards.stream.base import Stream
from data_shards.stream.batch import Batch, BatchPlan
from data_shards.stream.options import DEFAULT_OPTIONS, StreamOptions
from data_shards.stream.reader import SampleError
from data_shards.stream.shard_prefetcher import lookahead
from data_shards.stream.split import Place, Split
from data_shards.stream.transform import Example, Transform

SUMMED = (
    *("bytes", "cache_hits", "cache_misses"),
    *("bad_samples", "replaced", "retries", "refetches", "damaged_headers", "fetch_failures"),
)


class TrainStream(Stream):
    """This rank's micro-batches of the global training stream, without end and exactly resumable.

    Optimizer step k takes the positions [kB, (k+1)B) of `GlobalOrder`, B = global_batch_size, sorted by
    segment. Rank r takes the r-th slice of them, cut into micro-batches. What a sample becomes is a function
    of (seed, position) alone: it depends on no number of ranks, threads or prefetched batches.

    With a `quarantine` file, a bad sample is recorded there and replaced by the next healthy one of its
    shuffle buffer, which keeps its own label and is transformed by the key of the position. Without one, it
    ends the run.

    `split` may be several sets by name, each with its weight (`data_shards.order.weighted`). Every set has
    epochs and a quarantine of its own. The sets need the same classes, or `match_classes`, which maps labels
    by name to the classes of the first set; None says that labels stand for no classes.

    Raises:
        DataError: sizes that do not divide, a bad split, sets that do not go together, a shard that cannot be
            read, too many bad samples.
    """

    def __init__(
        self,
        split: Place | Mapping[str, TrainSet],
        sampling: TrainSampling,
        transform: Transform,
        options: StreamOptions = DEFAULT_OPTIONS,
        *,
        match_classes: bool | None = False,
    ) -> None:
        self.sets = split if isinstance(split, Mapping) else {}
        places = [one.path for one in self.sets.values()] if isinstance(split, Mapping) else [split]
        super().__init__(places, transform, options)
        self.grad_accum_steps = sampling.grad_accum_steps(options.dp_size)
        self.seed = sampling.seed
        self.global_batch_size, self.micro_batch_size = sampling.global_batch_size, sampling.micro_batch_size
        self.order = make_order(self.sets, self._manifests, sampling)
        self.num_samples = self.order.num_samples
        if self.sets:
            manifests = {name: one.manifest for name, one in zip(self.sets, self.splits, strict=True)}
            check_alike(manifests, transform.fields, match_classes)
            for one in self.splits[1:] if match_classes else ():
                one.map_labels(self.classes)
        self.samples = 0  # consumed by all ranks together, in complete optimizer steps
        self._yielded = 0  # micro-batches of the current step

    def state_dict(self) -> dict[str, Any]:
        """The samples consumed (prefetched ones not counted): JSON-able, under 1 KB, equal on all ranks.

        RuntimeError between the micro-batches of one optimizer step.
        """
        if self._yielded:
            done = f"{self._yielded} of {self.grad_accum_steps} micro-batches"
            raise RuntimeError(
                f"state_dict() inside an optimizer step ({done} handed out); call it between steps"
            )
        return make_state(self._manifests, self.order, self.samples, self._bad_samples(self.samples))

    @property
    def _manifests(self) -> list[Manifest]:
        return [split.manifest for split in self.splits]

    def _bad_samples(self, samples: int) -> list[str]:
        """The digest of each split's bad samples met before a position."""
        return [split.quarantine.digest(samples) for split in self.splits]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, with any dp_size, batch sizes and threads; closes the iterator.

        DataError when the state has another data set, seed, interleave or shuffle_buffer. It warns when the
        quarantine file differs from the one at the time of the state: the file is a record, and the stream
        continues exactly as the bytes of the shards decide.
        """
        check_state(state, self._manifests, self.order)
        if state.get("quarantine", known := joined_digest(self._bad_samples(state["samples"]))) != known:
            fix = "bad samples are met again as they come up, those since repaired are read"
            warnings.warn(
                f"quarantine {self.quarantine.path}: not as when the state was made; {fix}", stacklevel=2
            )
        self._stop()
        self.samples, self._yielded = int(state["samples"]), 0

    def _batches(self) -> Generator[Batch, None, None]:
        self._yielded = 0
        for batch in self._run(self._plans(self.samples)):
            self._yielded += 1
            if self._yielded == self.grad_accum_steps:
                self._yielded = 0
                self.samples += self.global_batch_size
            yield batch

    def _plans(self, start: int) -> Iterator[BatchPlan]:
        per_rank = self.global_batch_size // self.dp_size
        announced: tuple[tuple[int, int], ...] = ()
        while True:
            mine = self._mine(start)
            if (buffers := self.order.buffers_of(start)) != announced:
                announced = buffers
                self._announce(start)
            shards, rows = self.order.locate(mine)
            for i in range(0, per_rank, self.micro_batch_size):
                cut = slice(i, i + self.micro_batch_size)
                yield BatchPlan(positions=mine[cut], shards=shards[cut], rows=rows[cut])
            start += self.global_batch_size

    def _mine(self, start: int) -> np.ndarray:
        """This rank's positions of the step that starts at `start`: (B * grad_accum_steps,) int64."""
        per_rank = self.global_batch_size // self.dp_size
        batch = self.order.global_batch(start, self.global_batch_size)
        return batch[self.dp_rank * per_rank : (self.dp_rank + 1) * per_rank]

    def _announce(self, start: int) -> None:
        """Fetch into the cache, if there is one, the shards that this rank reads from `start` on."""
        if self.options.read.cache is None:
            return
        steps = [self._mine(start + i * self.global_batch_size) for i in range(4)]
        soon = self.order.own_positions(np.concatenate(steps))
        for split, order, own in zip(self.splits, self.order.orders, soon, strict=True):
            if len(own):
                segments, share = np.unique(order.segment_of(own)), len(own) / sum(map(len, soon))
                split.announce(lookahead(order, int(own.min()), segments, split.cacheable(share)))

    def _replace(self, error: SampleError, position: int, split: Split) -> Example:
        """The next healthy sample of the buffer: decided by the bytes of the shards alone."""
        if split.quarantine.path is None:
            raise error
        self._quarantine(error, position, split)
        for shard, row in self.order.substitutes(position):
            try:
                sample = self._decoded(self.fetch(shard, row), position, shard, row)
            except SampleError as another:
                self._quarantine(another, position, split)
                continue
            self.telemetry.add("replaced")
            return sample
        raise DataError(f"no healthy sample is left to stand in for: {error}") from error

    def counts(self) -> dict[str, int]:
        """This rank's counters, for the trainer to sum over the ranks; of each set, SET.recent_bad."""
        totals = self.telemetry.totals()
        recent = [split.quarantine.recent(self.samples) for split in self.splits]
        by_set = {f"{name}.recent_bad": bad for name, bad in zip(self.sets, recent, strict=False)}
        return {k: totals[k] for k in SUMMED} | {"recent_bad": sum(recent)} | by_set

    def check_counts(self, summed: dict[str, int]) -> None:
        """DataError when all ranks together met more bad samples recently than is allowed, of any set."""
        names = [f"{name}.recent_bad" for name in self.sets] or ["recent_bad"]
        for split, name in zip(self.splits, names, strict=True):
            split.quarantine.check_recent(summed[name])
