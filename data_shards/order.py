"""The global order of training samples: a pure function of (samples per shard, seed, position).

    epoch = position // N          the stream runs on over epochs: nothing dropped, nothing padded
    shards permuted                laid end to end they are the epoch's virtual stream of N samples
    64 lanes                       equal pieces of that stream, sizes at most one apart, the larger ones first
    4096-sample windows            permuted inside each lane
    q = position % N               is sample q // 64 of lane q % 64: with larger lanes first, a bijection

N = samples, L = lanes, B = positions asked for. A state that holds one number, the position, resumes it.
"""

from functools import lru_cache

import numpy as np

from data_shards.draws import Purpose, permutation
from data_shards.errors import DataError

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

    def global_batch(self, start: int, size: int) -> np.ndarray:
        """The positions [start, start + size) sorted by lane: (size,) int64.

        Rank r of W takes [r*size/W, (r+1)*size/W) of them, and so reads from few lanes, hence few shards.
        """
        positions = np.arange(start, start + size, dtype=np.int64)
        return positions[np.argsort(self.lane_of(positions), kind="stable")]

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
        small, larger = divmod(self.num_samples, self.lanes)
        size = min(self.window, small + (lane < larger) - window * self.window)
        permuted = permutation(size, Purpose.WINDOW, self.seed, epoch, lane, window)
        return permuted.astype(np.min_scalar_type(self.window))
