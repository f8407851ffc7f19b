"""Which of several sets each position draws from: as even as whole numbers allow, and without state.

Two sets of weights w and W - w share the positions 0, 1, 2 ... so that the first p of them hold p * w / W of
the first set, rounded to the nearest whole number. Any B positions in a row then hold fewer than one sample
more or less than B * w / W. More than two sets are split in two, and each side again (a Huffman tree: the
lightest sets are split last); every fork adds less than one sample to the difference.

Legend: K sets, B positions of a call.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_shards.order.sets import whole_weights


@dataclass(frozen=True)
class _Node:
    """One set, or a fork with two sides."""

    weight: int
    index: int = -1  # of the set
    sides: "tuple[_Node, _Node] | None" = None


class Interleave:
    """The set of each position, and its own position in that set.

    Args:
        weights: K whole numbers from 1; set k has weights[k] / sum(weights) of the positions.

    Raises:
        DataError: no weights, one below 1, or a sum that is too large.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = whole_weights(weights)
        self._root = _tree(self.weights)

    def counts(self, positions: np.ndarray) -> np.ndarray:
        """How many of the positions before each of `positions` (B,) int64 each set has: (B, K) int64."""
        counts = np.empty((*positions.shape, len(self.weights)), dtype=np.int64)
        _split(self._root, positions, counts)
        return counts

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The set of each of `positions` (B,), and the draws of that set before it: (B,) int64 each."""
        before = self.counts(positions)
        chosen = np.argmax(self.counts(positions + 1) - before, axis=-1)
        return chosen, np.take_along_axis(before, chosen[..., None], axis=-1)[..., 0]


def _tree(weights: Sequence[int]) -> _Node:
    """The two lightest nodes become one, until there is one; equal weights keep their order."""
    heap = [(weight, index, _Node(weight, index)) for index, weight in enumerate(weights)]
    heapq.heapify(heap)
    for number in range(len(weights), 2 * len(weights) - 1):
        (light, _, one), (heavier, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (light + heavier, number, _Node(light + heavier, sides=(one, other))))
    return heap[0][2]


def _split(node: _Node, positions: np.ndarray, counts: np.ndarray) -> None:
    """Write the draws of the sets below a node, which has had `positions` (B,) draws, into counts (B, K)."""
    if node.sides is None:
        counts[..., node.index] = positions
        return
    one, other = node.sides
    rounds, rest = np.divmod(positions, node.weight)
    drawn = rounds * one.weight + (2 * rest * one.weight + node.weight) // (2 * node.weight)
    _split(one, drawn, counts)
    _split(other, positions - drawn, counts)
