"""What two checkpoints have in common: tensor by tensor, then state and configuration."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from launcher.config.task_specs import TaskError
from launcher.validation.resume_policy import OptionChange, changed_options, configuration, shown
from parallel.checkpoint.manifest import CheckpointError
from parallel.checkpoint.reader import CheckpointReader

AT_ONCE = 2**20  # elements compared, so that the comparison needs little beside the tensors


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far apart a tensor is in two checkpoints."""

    name: str
    largest: float  # difference of two elements; infinite where one of them is no number
    relative: float  # the same, as a share of the largest element of either
    elements: int  # that differ by more than the tolerance

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]


@dataclass(kw_only=True)
class Comparison:
    """All that differs between checkpoints A and B."""

    gaps: list[Gap] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    state: list[str] = field(default_factory=list)
    options: list[OptionChange] = field(default_factory=list)
    compared: dict[str, int] = field(default_factory=dict)  # tensors in both, by kind

    @property
    def identical(self) -> bool:
        """Whether both are the same state of the same run, whatever layout wrote them."""
        options = [change for change in self.options if change.kind != "free"]
        return not (self.gaps or self.only_a or self.only_b or self.shapes or self.state or options)

    def lines(self, top: int) -> Iterator[str]:
        """What a person reads, with the `top` tensors that differ most."""
        for kind, compared in self.compared.items():
            yield f"{kind + ':':<12}{_kind_line([gap for gap in self.gaps if gap.kind == kind], compared)}"
        for place, names in (("only in A", self.only_a), ("only in B", self.only_b)):
            yield from _listed(f"{place}: {len(names)} tensors", names, top)
        yield from _listed(f"another shape: {len(self.shapes)} tensors", self.shapes, top)
        worst = sorted(self.gaps, key=lambda gap: (-gap.relative, gap.name))
        rows = [f"{g.relative:9.2e}  {g.largest:9.2e}  {g.elements:>9}  {g.name}" for g in worst]
        yield from _listed(f"relative, absolute, elements that differ: {len(rows)} tensors", rows, top)
        yield from _listed("state", self.state, len(self.state))
        rows = [
            f"{change.name}: {shown(change.before)} and {shown(change.now)} ({change.kind})"
            for change in self.options
        ]
        yield from _listed("configuration", rows, len(rows))


def compare(
    a: CheckpointReader,
    b: CheckpointReader,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare two checkpoints; in memory is one tensor of each at a time.

    Args:
        a, b: whose names and shapes may differ.
        rtol, atol: elements x of A and y of B are the same where |x - y| <= atol + rtol |y|.
        progress: called with the numbers of tensors compared and tensors in all.
    """
    comparison = Comparison(
        only_a=sorted(a.keys() - b.keys()),
        only_b=sorted(b.keys() - a.keys()),
        state=_state(a.manifest, b.manifest),
        options=_options(a.manifest, b.manifest),
    )
    both = [name for kind in a.kinds() for name in a.kind(kind).values() if name in b]
    for done, name in enumerate(both, start=1):
        kind = name.partition("/")[0]
        comparison.compared[kind] = comparison.compared.get(kind, 0) + 1
        if a.shapes[name] != b.shapes[name]:
            comparison.shapes.append(f"{name}: {a.shapes[name]} and {b.shapes[name]}")
        elif gap := gap_of(name, a[name], b[name], rtol=rtol, atol=atol):
            comparison.gaps.append(gap)
        if progress:
            progress(done, len(both))
    return comparison


def gap_of(name: str, x: Tensor, y: Tensor, *, rtol: float, atol: float) -> Gap | None:
    """How far apart two tensors of one shape are; None where they are the same. NaN is the same as NaN."""
    if torch.equal(x, y):
        return None
    largest, scale, elements = 0.0, 0.0, 0
    for part, other in zip(x.flatten().split(AT_ONCE), y.flatten().split(AT_ONCE), strict=True):
        same = (part == other) | (part.isnan() & other.isnan())
        distance = (part.double() - other).abs_().nan_to_num_(nan=torch.inf).masked_fill_(same, 0.0)
        elements += int((~same & ~(distance <= atol + rtol * other.abs().double())).sum())
        largest = max(largest, float(distance.max()))
        scale = max(scale, *(float(values.abs().max()) for values in (part, other)))
    if not elements:
        return None
    relative = largest / scale if 0 < scale < torch.inf else torch.inf
    return Gap(name=name, largest=largest, relative=relative, elements=elements)


def _state(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Step, data position and whatever else a run goes on from."""
    first, second = (dict(_flat({"step": m["step"], **m.get("state", {})})) for m in (a, b))
    return [
        f"{name}: {shown(first.get(name))} and {shown(second.get(name))}"
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _options(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[OptionChange]:
    try:
        return changed_options(configuration(a), configuration(b))
    except (CheckpointError, TaskError) as error:
        return [OptionChange(f"(unknown: {error})", None, None)] if a.get("config") != b.get("config") else []


def _kind_line(gaps: list[Gap], compared: int) -> str:
    if not gaps:
        return f"{compared} tensors, the same"
    largest, relative = max(gap.largest for gap in gaps), max(gap.relative for gap in gaps)
    return (
        f"{len(gaps)} of {compared} tensors differ, by up to {largest:.2e}, "
        f"{relative:.2e} of a tensor's largest element"
    )


def _listed(title: str, entries: list[str], most: int) -> Iterator[str]:
    if entries:
        yield f"{title}"
        yield from (f"  {entry}" for entry in entries[:most])
        if len(entries) > most:
            yield f"  and {len(entries) - most} more (--top)"
