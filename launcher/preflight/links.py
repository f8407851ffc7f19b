"""Preflight of the links: bandwidths in words and as values, and the slowest link, rank or group by name."""

from collections.abc import Iterator, Sequence
from statistics import median_low
from typing import Any, NamedTuple

from launcher.preflight.report import ProbeResults, Verdict, gib, noise_s, slow
from parallel.ranks.bandwidth import BETWEEN, IN_NODE, WORLD, Times, across, by_node, rounds

SLOW_LINK = 2.0  # times the median: below half of its bandwidth
COLLECTIVES = ("all_reduce", "all_to_all")


class Rate(NamedTuple):
    """What a group or a pair of neighbours needed for one message."""

    what: str  # a collective, or "neighbours"
    scope: str
    ranks: tuple[int, ...]
    seconds: float

    def gb_s(self, message_bytes: int) -> float:
        """Algorithm bandwidth, in 10^9 bytes a second."""
        return message_bytes / self.seconds / 1e9


def rates(results: ProbeResults) -> list[Rate]:
    """Every group and every pair; a group is as quick as its slowest rank, a pair as its slower end."""
    times: Sequence[Times] = results.values
    measured = []
    for what in COLLECTIVES:
        for scope, groups in _groups(results):
            for ranks in groups:
                seconds = max(getattr(times[rank], what)[scope] for rank in ranks)
                measured.append(Rate(what, scope, tuple(ranks), seconds))
    for scope, rings in ((IN_NODE, by_node(results.places)), (BETWEEN, across(results.places))):
        for ring in rings:
            for a, b in (pair for part in rounds(ring) for pair in part):
                seconds = max(times[a].neighbours[b], times[b].neighbours[a])
                measured.append(Rate("neighbours", scope, tuple(sorted((a, b))), seconds))
    return measured


def _groups(results: ProbeResults) -> Iterator[tuple[str, list[list[int]]]]:
    if len(results.nodes) > 1:
        yield IN_NODE, [node for node in results.nodes if len(node) > 1]
        yield BETWEEN, across(results.places)
    if len(results.places) > 1:
        yield WORLD, [[place.rank for place in results.places]]


def evaluate(results: ProbeResults, message_bytes: int) -> Verdict:
    """No link, rank or group that is slow beside others of its kind."""
    measured = rates(results)
    if not measured:
        return Verdict(message="one rank: nothing to measure")
    verdict = Verdict(message=f"messages of {gib(message_bytes)}")
    for scope in (IN_NODE, BETWEEN):
        pairs = {rate.ranks: rate for rate in measured if rate.what == "neighbours" and rate.scope == scope}
        verdict.warnings += _slow_pairs(results, scope, pairs, message_bytes)
        for what in COLLECTIVES:
            groups = {r.ranks: r for r in measured if r.what == what and r.scope == scope}
            seconds = {ranks: rate.seconds for ranks, rate in groups.items()}
            verdict.warnings += [
                f"{_name(what)} {scope}: {groups[ranks].gb_s(message_bytes):.2f} GB/s among "
                f"{results.where(ranks)}, below half of the median of {len(groups)} groups"
                for ranks in slow(seconds, SLOW_LINK, noise_s(results.device_type))
            ]
    return verdict


def _slow_pairs(
    results: ProbeResults, scope: str, pairs: dict[tuple[int, ...], Rate], message_bytes: int
) -> Iterator[str]:
    """A rank all of whose links are slow is named once, every other slow link by itself."""
    late = slow(
        {ranks: rate.seconds for ranks, rate in pairs.items()}, SLOW_LINK, noise_s(results.device_type)
    )
    if not late:
        return
    usual = message_bytes / median_low(rate.seconds for rate in pairs.values()) / 1e9
    message = f"the median of {len(pairs)} links {scope} is {usual:.2f} GB/s"
    culprits = [rank for rank in sorted({r for pair in late for r in pair}) if _is_culprit(rank, late, pairs)]
    for rank in culprits:
        best = max(pairs[pair].gb_s(message_bytes) for pair in late if rank in pair)
        rank_name = results.where([rank])
        yield f"links: {rank_name} exchanges at most {best:.2f} GB/s with any neighbour; {message}"
    for pair in late:
        if not set(pair) & set(culprits):
            a, b = (results.where([rank]) for rank in pair)
            yield f"links: {pairs[pair].gb_s(message_bytes):.2f} GB/s between {a} and {b}; {message}"


def _is_culprit(rank: int, late: Sequence[tuple[int, ...]], pairs: dict[tuple[int, ...], Rate]) -> bool:
    own = [pair for pair in pairs if rank in pair]
    return len(own) > 1 and all(pair in late for pair in own)


def table(results: ProbeResults, message_bytes: int) -> list[str]:
    """A line for each kind of link: the slowest of its kind, and where it is."""
    kinds: dict[tuple[str, str], list[Rate]] = {}
    for rate in rates(results):
        kinds.setdefault((rate.what, rate.scope), []).append(rate)
    lines = []
    for (what, scope), of_kind in kinds.items():
        worst = max(of_kind, key=lambda rate: rate.seconds)
        of = f"slowest of {len(of_kind)}: " if len(of_kind) > 1 else ""
        gb_s = worst.gb_s(message_bytes)
        lines.append(f"{_name(what):11} {scope:14} {gb_s:8.2f} GB/s  {of}{results.where(worst.ranks)}")
    return lines


def summary(results: ProbeResults, message_bytes: int) -> str:
    """The collectives of all ranks, in half a line; empty for one rank."""
    world = {rate.what: rate.gb_s(message_bytes) for rate in rates(results) if rate.scope == WORLD}
    return "".join(f", {_name(what)} {gb_s:.1f} GB/s" for what, gb_s in world.items())


def as_json(results: ProbeResults, message_bytes: int) -> list[dict[str, Any]]:
    """Every rate."""
    return [{**rate._asdict(), "gb_s": rate.gb_s(message_bytes)} for rate in rates(results)]


def _name(what: str) -> str:
    return what.replace("_", "-")
