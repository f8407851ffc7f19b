"""Several training sets with weights, as one order: a pure function of (sets, weights, seed, position).

    position p    -> set k, and the draws c of it before p      interleave.py: as even as possible
    draw c of k   -> shard and row of set k                     global_order.py: one GlobalOrder a set

Each set goes through its own permutation, without repeats until all of its samples were drawn, and then
through that of its next epoch. Inside of a block of BLOCK positions, the draws of a set swap places with each
other: those of its first segments come to the positions that the first ranks read, and so on. So each rank
reads few segments, and few shards, of every set, whatever the weights are. Draws of two epochs do not swap.

Legend: K sets, B positions of a call, L = BLOCK.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np

from data_shards.errors import DataError
from data_shards.format.classes import differences
from data_shards.format.index import Manifest
from data_shards.order.global_order import SHUFFLE_BUFFER, GlobalOrder, Order, seed_of_part
from data_shards.order.interleave import Interleave
from data_shards.order.sampling import TrainSampling
from data_shards.order.sets import Mixture, TrainSet, mixture

BLOCK = 4096  # positions


def check_alike(manifests: Mapping[str, Manifest], fields: Sequence[str], match_classes: bool | None) -> None:
    """DataError unless samples of all sets can stand in one batch.

    Args:
        manifests: of the sets, by what messages call them.
        fields: the members that are read; labels are compared only if they are among them.
        match_classes: whether the classes of the other sets need only be among those of the first; None says
            that labels stand for no classes.
    """
    (first, wanted), *others = manifests.items()
    for name, manifest in others:
        for field in fields:
            one, other = (m.field(field) for m in (wanted, manifest))
            if (one.codec, one.is_scalar) != (other.codec, other.is_scalar):
                raise DataError(
                    f"{first} and {name}: the member {field!r} is {one.codec} in one and {other.codec} in "
                    "the other; pack them alike"
                )
        if match_classes is False and "label" in fields and manifest.classes != wanted.classes:
            raise DataError(
                f"{first} and {name}: not the same classes: {differences(manifest.classes, wanted.classes)}; "
                "pack them with the same, or map labels by name (match_classes)"
            )


class WeightedOrder(Order):
    """The shard and the row of each position where several sets have their shares of the positions.

    Args:
        names: of the sets.
        samples_per_shard: of each set, (shards,) int64.
        mixture: their weights.
        seed: of the run; each set draws from one that is made of it and of its name.
        interleave: segments of each set that are read in turn.
        shuffle_buffer: samples of a segment that are shuffled.
    """

    def __init__(
        self,
        names: Sequence[str],
        samples_per_shard: Sequence[np.ndarray],
        mixture: Mixture,
        seed: int,
        interleave: int,
        shuffle_buffer: int,
    ) -> None:
        self.names, self.mixture, self.num_samples = tuple(names), mixture, mixture.samples
        self.seed, self.interleave, self.shuffle_buffer = seed, interleave, shuffle_buffer
        self._orders = tuple(
            GlobalOrder(sizes, seed_of_part(seed, name), interleave, shuffle_buffer)
            for name, sizes in zip(names, samples_per_shard, strict=True)
        )
        self._interleave = Interleave(mixture.weights)
        shards = [len(sizes) for sizes in samples_per_shard]
        self._first_shards = list(accumulate(shards[:-1], initial=0))
        self._block = lru_cache(maxsize=4)(self._assign)

    @property
    def orders(self) -> Sequence[GlobalOrder]:
        """The order of each set, over its own positions."""
        return self._orders

    def draws(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The set of each of `positions` (B,) and the position in that set's own order: (B,) int64 each."""
        blocks, chosen, own = positions // BLOCK, np.empty_like(positions), np.empty_like(positions)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            sets, draws = self._block(block)
            chosen[here], own[here] = sets[positions[here] % BLOCK], draws[positions[here] % BLOCK]
        return chosen, own

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The samples at `positions` (B,) int64: shard (B,) and row in the shard (B,), both int64."""
        chosen, own = self.draws(positions)
        shard, row = np.empty_like(own), np.empty_like(own)
        for k, order in enumerate(self._orders):
            here = chosen == k
            shard[here], row[here] = order.locate(own[here])
            shard[here] += self._first_shards[k]
        return shard, row

    def own_positions(self, positions: np.ndarray) -> list[np.ndarray]:
        """The positions in its own order of what each set has at `positions`: one array for each set."""
        chosen, own = self.draws(positions)
        return [own[chosen == k] for k in range(len(self._orders))]

    def segment_of(self, positions: np.ndarray) -> np.ndarray:
        """The segment of each set that is read at each of `positions`, nearly: (B,) int64."""
        return positions % self.interleave

    def buffers_of(self, position: int) -> tuple[tuple[int, int], ...]:
        """Epoch and buffer in which each set is at a position."""
        counts = self._interleave.counts(np.array(position, dtype=np.int64)).tolist()
        return tuple(order.buffer_of(count) for order, count in zip(self._orders, counts, strict=True))

    def substitutes(self, position: int) -> Iterator[tuple[int, int]]:
        """Shard and row of the samples of the same set that may replace a bad one, in the order of trial."""
        (k,), (own,) = (part.tolist() for part in self.draws(np.array([position])))
        for shard, row in self._orders[k].substitutes(own):
            yield self._first_shards[k] + shard, row

    def _assign(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Set and draw at each position of a block: (L,) int64 each.

        The positions of a set are sorted as `global_batch` sorts them, its draws by their segments, and the
        first position gets the first draw.
        """
        positions = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.int64)
        chosen, draws = self._interleave.locate(positions)
        rank_order, assigned = self.segment_of(positions - positions % 2), np.empty_like(draws)
        for k, order in enumerate(self._orders):
            rows = np.flatnonzero(chosen == k)
            own = draws[rows]
            epochs = own // order.num_samples
            by_rank = rows[np.lexsort((rank_order[rows], epochs))]
            assigned[by_rank] = own[np.lexsort((order.segment_of(own), epochs))]
        return chosen, assigned


def make_order(sets: Mapping[str, TrainSet], manifests: Sequence[Manifest], sampling: TrainSampling) -> Order:
    """The order of the samples of a training stream.

    Args:
        sets: with their weights; none for a single split.
        manifests: of the sets, or of the split.
        sampling: the seed, and the options of the order.
    """
    sizes = [manifest.samples_per_shard for manifest in manifests]
    buffer = SHUFFLE_BUFFER if sampling.shuffle_buffer is None else sampling.shuffle_buffer
    if not sets:
        return GlobalOrder(sizes[0], sampling.seed, sampling.interleave, buffer)
    mixed = mixture(sets, [manifest.samples for manifest in manifests])
    return WeightedOrder([*sets], sizes, mixed, sampling.seed, sampling.interleave, buffer)
