"""The global order of training samples: a pure function of (samples per shard, seed, position).

    epoch = position // N          the stream runs on over epochs: nothing dropped, nothing padded
    shards permuted                laid end to end they are the epoch's virtual stream of N samples
    64 lanes                       equal pieces of that stream, sizes at most one apart, the larger ones first
    4096-sample windows            permuted inside each lane
    q = position % N               is sample q // 64 of lane q % 64: with larger lanes first, a bijection

N = samples, L = lanes, B = positions asked for. A state that holds one number, the position, resumes it.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from data_shards.errors import DataError
from data_shards.format.rng import Purpose, permutation

LANES = 64
WINDOW = 4096


class GlobalOrder:
    """Where in the shards each position of the endless training stream lies.

    `samples_per_shard` is (shards,) int64. Memory: 2 bytes a sample of the windows in use, not of the data
    set.
    """

    def __init__(
        self, samples_per_shard: np.ndarray, seed: int, lanes: int = LANES, window: int = WINDOW
    ) -> None:
        for option, value in {
            "lanes": lanes,
            "window": window,
            "samples": int(samples_per_shard.sum()),
        }.items():
            if value < 1:
                raise DataError(f"{option} ({value}) must be at least 1")
        self.samples_per_shard = samples_per_shard
        self.num_samples = int(samples_per_shard.sum())
        self.seed, self.lanes, self.window = seed, lanes, window
        self._shards = lru_cache(maxsize=2)(self._permute_shards)
        self._window = lru_cache(maxsize=4 * lanes)(self._permute_window)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where `positions` (B,) int64 lie: shard (B,) and sample in the shard (B,), both int64."""
        epochs = positions // self.num_samples
        virtual = self._virtual(positions)
        shard, sample = np.empty_like(virtual), np.empty_like(virtual)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            permuted, ends = self._shards(epoch)
            place = np.searchsorted(ends, virtual[chosen], side="right")
            shard[chosen] = permuted[place]
            sample[chosen] = virtual[chosen] - ends[place] + self.samples_per_shard[permuted[place]]
        return shard, sample

    def lane_of(self, positions: np.ndarray) -> np.ndarray:
        """The lane of each of `positions`: (B,) int64."""
        return positions % self.num_samples % self.lanes

    def window_of(self, position: int) -> tuple[int, int]:
        """Epoch and window of a position; all lanes are in the same window, but for a lane's last sample."""
        epoch, q = divmod(position, self.num_samples)
        return epoch, q // self.lanes // self.window

    def global_batch(self, start: int, size: int) -> np.ndarray:
        """The positions [start, start + size), sorted by the lane of their pair's first: (size,) int64.

        Rank r of W takes [r*size/W, (r+1)*size/W) of them, and so reads from few lanes, hence few shards. The
        positions 2k and 2k + 1, which mix with each other, stay side by side.
        """
        positions = np.arange(start, start + size, dtype=np.int64)
        return positions[np.argsort(self.lane_of(positions - positions % 2), kind="stable")]

    def replacements(self, position: int) -> Iterator[int]:
        """The positions whose samples may stand in for a bad sample at `position`, in the order of trial.

        First the others of its window, from the next one on and around; should none of them be healthy, all
        of its epoch in the same way. Like the order, a function of (samples per shard, seed, position).
        """
        epoch, q = divmod(position, self.num_samples)
        lane, rank = q % self.lanes, q // self.lanes
        first = rank - rank % self.window
        size = self._window_size(lane, rank // self.window)
        for step in range(1, size):
            turn = first + (rank - first + step) % size
            yield epoch * self.num_samples + turn * self.lanes + lane
        for step in range(1, self.num_samples):
            yield epoch * self.num_samples + (q + step) % self.num_samples

    def window_shards(self, epoch: int, lane: int, window: int) -> np.ndarray:
        """The shards that one window of a lane draws from: (shards of the window,) int64, empty beyond it."""
        small, larger = divmod(self.num_samples, self.lanes)
        size = self._window_size(lane, window)
        start = lane * small + min(lane, larger) + window * self.window
        permuted, ends = self._shards(epoch)
        if size < 1:
            return permuted[:0]
        first, last = np.searchsorted(ends, [start, start + size - 1], side="right")
        return permuted[first : last + 1]

    def _window_size(self, lane: int, window: int) -> int:
        """Samples in a window of a lane; 0 or less beyond the lane's end."""
        small, larger = divmod(self.num_samples, self.lanes)
        return min(self.window, small + (lane < larger) - window * self.window)

    def _virtual(self, positions: np.ndarray) -> np.ndarray:
        """The place of each position in its epoch's virtual stream: (B,) int64 in [0, N)."""
        epoch, q = positions // self.num_samples, positions % self.num_samples
        lane, rank = q % self.lanes, q // self.lanes
        small, larger = divmod(self.num_samples, self.lanes)
        lane_start = lane * small + np.minimum(lane, larger)
        window = rank // self.window
        return lane_start + window * self.window + self._in_window(epoch, lane, window, rank % self.window)

    def _in_window(
        self, epoch: np.ndarray, lane: np.ndarray, window: np.ndarray, rank: np.ndarray
    ) -> np.ndarray:
        """Each rank (B,) as its window's permutation sends it: (B,) int64, one look-up a window."""
        windows_a_lane = self.num_samples // (self.lanes * self.window) + 1
        group = (epoch * self.lanes + lane) * windows_a_lane + window
        order = np.argsort(group, kind="stable")
        cuts = np.flatnonzero(np.diff(group[order])) + 1
        permuted = np.empty_like(rank)
        for rows in np.split(order, cuts) if len(order) else []:
            key = int(epoch[rows[0]]), int(lane[rows[0]]), int(window[rows[0]])
            permuted[rows] = self._window(*key)[rank[rows]]
        return permuted

    def _permute_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards as `epoch` orders them, and their ends in the virtual stream: (shards,) int64 twice."""
        permuted = permutation(len(self.samples_per_shard), Purpose.SHARDS, self.seed, epoch)
        return permuted, np.cumsum(self.samples_per_shard[permuted])

    def _permute_window(self, epoch: int, lane: int, window: int) -> np.ndarray:
        size = self._window_size(lane, window)
        permuted = permutation(size, Purpose.WINDOW, self.seed, epoch, lane, window)
        return permuted.astype(np.min_scalar_type(self.window))
