"""The global order of training samples.

The order is a pure function of (samples per shard, seed, position):

    epoch = position // N          the stream continues over epochs: nothing is dropped, nothing is padded
    shards permuted                end to end they are the epoch's concatenated stream of N samples
    `interleave` segments          equal parts of that stream, sizes at most one apart, the larger ones first
    `shuffle_buffer` samples       consecutive samples of a segment, permuted
    q = position % N               is sample q // interleave of segment q % interleave: a bijection

So the position is the whole state: a resume needs one number. The saved state names `interleave` "lanes" and
`shuffle_buffer` "window". N = samples, B = positions of a call.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from data_shards.errors import DataError
from data_shards.format.rng import Purpose, fold, permutation

INTERLEAVE = 64  # segments read in turn
SHUFFLE_BUFFER = 4096  # samples


def seed_of_part(seed: int, name: str) -> int:
    """The seed of the order of one of several sets, from that of all."""
    return fold(Purpose.PART, seed, *name.encode())


class Order:
    """What training streams ask of an order; the shards of all of its sets are numbered through."""

    num_samples: int  # of an epoch
    seed: int
    interleave: int
    shuffle_buffer: int

    @property
    def orders(self) -> "Sequence[GlobalOrder]":
        """The order of each set, over its own positions."""
        raise NotImplementedError

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The samples at `positions` (B,) int64: shard (B,) and row in the shard (B,), both int64."""
        raise NotImplementedError

    def own_positions(self, positions: np.ndarray) -> list[np.ndarray]:
        """The positions in its own order of what each set has at `positions`: one array for each set."""
        raise NotImplementedError

    def segment_of(self, positions: np.ndarray) -> np.ndarray:
        """The segment of each of `positions`: (B,) int64."""
        raise NotImplementedError

    def buffers_of(self, position: int) -> tuple[tuple[int, int], ...]:
        """Epoch and buffer in which each set is at a position."""
        raise NotImplementedError

    def substitutes(self, position: int) -> Iterator[tuple[int, int]]:
        """Shard and row of the samples that may replace a bad one at `position`, in the order of trial."""
        raise NotImplementedError

    def global_batch(self, start: int, size: int) -> np.ndarray:
        """The positions [start, start + size), sorted by the segment of their pair's first: (size,) int64.

        Rank r of W takes [r*size/W, (r+1)*size/W) of them, so that it reads few segments and few shards. The
        positions 2k and 2k + 1, which mixup mixes, stay adjacent.
        """
        positions = np.arange(start, start + size, dtype=np.int64)
        return positions[np.argsort(self.segment_of(positions - positions % 2), kind="stable")]


class GlobalOrder(Order):
    """The shard and the row of each position of the endless training stream.

    `samples_per_shard` is (shards,) int64. Memory: 2 bytes for each sample of the buffers in use, not of the
    data set.
    """

    def __init__(
        self,
        samples_per_shard: np.ndarray,
        seed: int,
        interleave: int = INTERLEAVE,
        shuffle_buffer: int = SHUFFLE_BUFFER,
    ) -> None:
        samples = int(samples_per_shard.sum())
        options = {"interleave": interleave, "shuffle_buffer": shuffle_buffer, "samples": samples}
        for option, value in options.items():
            if value < 1:
                raise DataError(f"{option} ({value}) must be at least 1")
        self.samples_per_shard, self.num_samples = samples_per_shard, samples
        self.seed, self.interleave, self.shuffle_buffer = seed, interleave, shuffle_buffer
        self._shards = lru_cache(maxsize=2)(self._permute_shards)
        self._buffer = lru_cache(maxsize=4 * interleave)(self._permute_buffer)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The samples at `positions` (B,) int64: shard (B,) and row in the shard (B,), both int64."""
        epochs = positions // self.num_samples
        offsets = self._offsets(positions)
        shard, row = np.empty_like(offsets), np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            permuted, ends = self._shards(epoch)
            i = np.searchsorted(ends, offsets[chosen], side="right")
            shard[chosen] = permuted[i]
            row[chosen] = offsets[chosen] - ends[i] + self.samples_per_shard[permuted[i]]
        return shard, row

    def segment_of(self, positions: np.ndarray) -> np.ndarray:
        """The segment of each of `positions`: (B,) int64."""
        return positions % self.num_samples % self.interleave

    def buffer_of(self, position: int) -> tuple[int, int]:
        """Epoch and buffer of a position: the same in all segments, except at a segment's last sample."""
        epoch, q = divmod(position, self.num_samples)
        return epoch, q // self.interleave // self.shuffle_buffer

    @property
    def orders(self) -> "Sequence[GlobalOrder]":
        """This order alone."""
        return (self,)

    def own_positions(self, positions: np.ndarray) -> list[np.ndarray]:
        """The positions themselves."""
        return [positions]

    def buffers_of(self, position: int) -> tuple[tuple[int, int], ...]:
        """Epoch and buffer of a position."""
        return (self.buffer_of(position),)

    def substitutes(self, position: int) -> Iterator[tuple[int, int]]:
        """Shard and row at each of `replacements`."""
        for other in self.replacements(position):
            (shard,), (row,) = (part.tolist() for part in self.locate(np.array([other])))
            yield shard, row

    def replacements(self, position: int) -> Iterator[int]:
        """The positions whose samples may replace a bad sample at `position`, in the order of trial.

        First come the others of its buffer, cyclically from the next one on, then all of its epoch, in the
        same way. Like the order, this is a function of (samples per shard, seed, position).
        """
        epoch, q = divmod(position, self.num_samples)
        segment, rank = q % self.interleave, q // self.interleave
        first = rank - rank % self.shuffle_buffer
        size = self._buffer_size(segment, rank // self.shuffle_buffer)
        for step in range(1, size):
            turn = first + (rank - first + step) % size
            yield epoch * self.num_samples + turn * self.interleave + segment
        for step in range(1, self.num_samples):
            yield epoch * self.num_samples + (q + step) % self.num_samples

    def buffer_shards(self, epoch: int, segment: int, buffer: int) -> np.ndarray:
        """The shards that a buffer of a segment draws from: (shards,) int64; empty beyond it."""
        small, larger = divmod(self.num_samples, self.interleave)
        size = self._buffer_size(segment, buffer)
        start = segment * small + min(segment, larger) + buffer * self.shuffle_buffer
        permuted, ends = self._shards(epoch)
        if size < 1:
            return permuted[:0]
        first, last = np.searchsorted(ends, [start, start + size - 1], side="right")
        return permuted[first : last + 1]

    def _buffer_size(self, segment: int, buffer: int) -> int:
        """Samples in a buffer of a segment; 0 or less beyond the segment's end."""
        small, larger = divmod(self.num_samples, self.interleave)
        return min(self.shuffle_buffer, small + (segment < larger) - buffer * self.shuffle_buffer)

    def _offsets(self, positions: np.ndarray) -> np.ndarray:
        """The offset of each position in its epoch's concatenated stream: (B,) int64 in [0, N)."""
        epoch, q = positions // self.num_samples, positions % self.num_samples
        segment, rank = q % self.interleave, q // self.interleave
        small, larger = divmod(self.num_samples, self.interleave)
        segment_start = segment * small + np.minimum(segment, larger)
        buffer = rank // self.shuffle_buffer
        inside = self._in_buffer(epoch, segment, buffer, rank % self.shuffle_buffer)
        return segment_start + buffer * self.shuffle_buffer + inside

    def _in_buffer(
        self, epoch: np.ndarray, segment: np.ndarray, buffer: np.ndarray, rank: np.ndarray
    ) -> np.ndarray:
        """Each rank (B,) permuted inside its buffer: (B,) int64, with one look-up for each buffer."""
        buffers_a_segment = self.num_samples // (self.interleave * self.shuffle_buffer) + 1
        group = (epoch * self.interleave + segment) * buffers_a_segment + buffer
        order = np.argsort(group, kind="stable")
        cuts = np.flatnonzero(np.diff(group[order])) + 1
        permuted = np.empty_like(rank)
        for rows in np.split(order, cuts) if len(order) else []:
            key = int(epoch[rows[0]]), int(segment[rows[0]]), int(buffer[rows[0]])
            permuted[rows] = self._buffer(*key)[rank[rows]]
        return permuted

    def _permute_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of `epoch`, and their ends in its stream: (shards,) int64 each."""
        permuted = permutation(len(self.samples_per_shard), Purpose.SHARDS, self.seed, epoch)
        return permuted, np.cumsum(self.samples_per_shard[permuted])

    def _permute_buffer(self, epoch: int, segment: int, buffer: int) -> np.ndarray:
        size = self._buffer_size(segment, buffer)
        permuted = permutation(size, Purpose.WINDOW, self.seed, epoch, segment, buffer)
        return permuted.astype(np.min_scalar_type(self.shuffle_buffer))
