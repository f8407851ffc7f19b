"""Whom all wait for: pure arithmetic over what the ranks posted of themselves."""

from collections.abc import Mapping
from typing import Any

Statuses = Mapping[int, Mapping[str, Any]]


def judge(heard: Statuses, silent: set[int], world_size: int) -> str:
    """Name the rank that stands in the way, in one line.

    It is the one that posts nothing; or else the one that is in no collective; or else the one at the
    earliest step; or else the ranks disagree, and each is named with where it is.

    Args:
        heard: the last word of each rank that ever spoke.
        silent: those that have posted nothing for some time.
        world_size: ranks.
    """
    never = [rank for rank in range(world_size) if rank not in heard]
    if never:
        return f"{_ranks(never)} never said anything; {_waiting(heard, never)}"
    quiet = sorted(silent)
    if quiet:
        now_s = max(status["time_s"] for status in heard.values())
        culprits = [_silence(rank, heard[rank], now_s) for rank in quiet]
        return f"{' and '.join(culprits)}; {_waiting(heard, quiet)}"
    elsewhere = [rank for rank in sorted(heard) if not heard[rank]["is_collective"]]
    first = min(status["step"] for status in heard.values())
    behind = [rank for rank in sorted(heard) if heard[rank]["step"] == first]
    for late in (elsewhere, behind):
        if late and len(late) < len(heard):
            culprits = [f"rank {rank} is {_where(heard[rank])}" for rank in late]
            return f"{' and '.join(culprits)}; {_waiting(heard, late)}"
    return f"the ranks wait for each other: {_waiting(heard, [])}"


def _silence(rank: int, status: Mapping[str, Any], now_s: float) -> str:
    for_s = max(0.0, now_s - status["time_s"])
    return (
        f"rank {rank} has said nothing for {for_s:.0f} s; it was at step {status['step']}, "
        f"in {status['place']}"
    )


def _where(status: Mapping[str, Any]) -> str:
    return f"at step {status['step']}, for {status['still_s']:.0f} s in {status['place']}"


def _waiting(heard: Statuses, culprits: list[int]) -> str:
    """Who waits where, those in one place together."""
    places: dict[str, list[int]] = {}
    for rank in sorted(heard):
        if rank not in culprits:
            places.setdefault(f"{heard[rank]['place']} at step {heard[rank]['step']}", []).append(rank)
    of = " for it" if len(culprits) == 1 else " for them" if culprits else ""
    return ", ".join(
        f"{_ranks(ranks)} {'waits' if len(ranks) == 1 else 'wait'}{of} in {place}"
        for place, ranks in places.items()
    )


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
