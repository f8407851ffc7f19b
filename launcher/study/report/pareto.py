"""What is worth its price: the points that no other one beats in both figures."""

from collections.abc import Sequence


def front(gain: Sequence[float], cost: Sequence[float]) -> list[int]:
    """The indices of the non-dominated points, cheapest first.

    A point is dominated if another has at least its gain for at most its cost and is better in one of them.
    Of equal points all stay. By one pass in order of cost, and of falling gain where the cost is the same.

    Args:
        gain: of each point, more is better.
        cost: of each point, less is better.
    """
    order = sorted(range(len(gain)), key=lambda i: (cost[i], -gain[i], i))
    kept: list[int] = []
    for i in order:
        last = kept[-1] if kept else None
        if last is None or gain[i] > gain[last] or (gain[i], cost[i]) == (gain[last], cost[last]):
            kept.append(i)
    return kept
