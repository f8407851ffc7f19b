"""The parts of a preflight check: its context on a rank, the results of all ranks, and a verdict on them."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any, NamedTuple, TypeVar

import torch

from launcher.config.schema import RunConfig
from parallel.ranks.bandwidth import RankNode, by_node
from parallel.ranks.rank import Ranks

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ProbeContext:
    """The arguments of a probe."""

    config: RunConfig | None  # None: the machine alone
    ranks: Ranks
    device: torch.device
    met_s: float  # the time of day when all ranks left a gathering, as its own clock says
    token: str  # names a file that rank 0 has left in the run directory; "" where it could not
    in_train: bool = False
    deadline_s: float = 10.0  # for a read that does not answer


@dataclass(frozen=True, kw_only=True)
class ProbeResults:
    """The values that one probe returned on every rank."""

    places: Sequence[RankNode]
    values: Sequence[Any]  # by rank
    config: RunConfig | None = None
    device_type: str = "cpu"

    def where(self, ranks: Sequence[int]) -> str:
        """Ranks and their nodes: `ranks 0-2, 5 (nodes a, b)`."""
        nodes = list(dict.fromkeys(self.places[rank].node for rank in ranks))
        shown = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
        return f"{spans(ranks)} (node{'s' * (len(nodes) > 1)} {shown})"

    def groups(self, values: Iterable[T]) -> list[tuple[T, list[int]]]:
        """The different values with their ranks, that of most ranks first."""
        by_value: dict[Hashable, tuple[T, list[int]]] = {}
        for rank, value in enumerate(values):
            by_value.setdefault(repr(value), (value, []))[1].append(rank)
        return sorted(by_value.values(), key=lambda group: -len(group[1]))

    def spread(self, values: Iterable[Any]) -> str:
        """`2.13.0 on ranks 0-6, 2.12.1 on rank 7 (node gpu9)`."""
        (usual, most), *others = self.groups(values)
        return ", ".join(
            [f"{usual} on {spans(most)}", *(f"{v} on {self.where(ranks)}" for v, ranks in others)]
        )

    def each(self, values: Iterable[str | None]) -> list[str]:
        """`rank 3 (node b): TEXT` for each different text; None has no line."""
        return [f"{self.where(ranks)}: {text}" for text, ranks in self.groups(values) if text is not None]

    @property
    def nodes(self) -> list[list[int]]:
        """The ranks of each node."""
        return by_node(self.places)


@dataclass(kw_only=True)
class Verdict:
    """The result of a check: one line of its values, and one for each thing that is wrong."""

    message: str = ""
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        """The verdict in one word."""
        return "FAIL" if self.failures else "warn" if self.warnings else "ok"


class Check(NamedTuple):
    """`probe` runs on each rank (None: the check does not apply); `evaluate` gets the values of all ranks."""

    name: str
    probe: Callable[[ProbeContext], Any]
    evaluate: Callable[[ProbeResults], Verdict]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole preflight."""

    results: dict[str, ProbeResults]
    verdicts: dict[str, Verdict]
    links: ProbeResults  # Times by rank
    message_bytes: int
    seconds: float

    @property
    def failures(self) -> list[str]:
        """Every line that stops a run, once."""
        return list(dict.fromkeys(line for verdict in self.verdicts.values() for line in verdict.failures))

    @property
    def warnings(self) -> list[str]:
        """Every line that does not."""
        return [line for verdict in self.verdicts.values() for line in verdict.warnings]


def spans(ranks: Sequence[int]) -> str:
    """`rank 7`, `ranks 0-2, 5`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank{'s' * (len(ranks) > 1)} {text}"


def slow(seconds: dict[T, float], factor: float, noise_s: float) -> list[T]:
    """Those that took more than `factor` times the lower median, and that by more than noise."""
    if not seconds:
        return []
    usual = median_low(seconds.values())
    return [key for key, s in seconds.items() if s > factor * usual and s - usual > noise_s]


def noise_s(device_type: str) -> float:
    """A difference that means nothing: ranks on a CPU are at the mercy of the system's scheduler."""
    return 0.0002 if device_type == "cuda" else 0.05


def gib(amount: float) -> str:
    """Bytes as people read them."""
    return f"{amount / 2**30:.1f} GiB" if amount >= 2**30 else f"{amount / 2**20:.1f} MiB"
