"""The most memory that a rank needs, item by item, before anything runs. See docs/planner.md."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Device
from launcher.plan.memory.activations import BATCH, Activations, Moment, activations_of
from launcher.plan.memory.gradient_buckets import Flow, GradientSizes, Snapshot, flow_of
from launcher.plan.memory.rank_params import RankParams, bucket_of, params_of_fullest_rank
from launcher.plan.memory.states import (
    States,
    element_bytes,
    gradient_bytes,
    part_of,
    states_of,
    teacher_of,
    touched_by,
)
from launcher.plan.memory.zero3_prefetch import Gathered
from parallel.ranks.dims import ParallelDims
from parallel.zero.memory import TeacherBytes


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a rank holds at its peak."""

    items: tuple[tuple[str, int], ...]  # name -> bytes, of the rank that needs most; persistent ones first
    transient: tuple[str, int]  # the largest transient: its name and bytes
    host_bytes: int  # on the host, where optimizer states are offloaded
    moment: str  # of a step, when the peak is
    activations: tuple[tuple[str, int], ...]  # by part of the model, when the backward pass begins

    @property
    def peak_bytes(self) -> int:
        """Everything that is there at the peak."""
        return sum(size for _, size in self.items) + self.transient[1]


def predict_memory(
    config: RunConfig, nodes: Sequence[int], device: Device = "cuda", *, reserved: bool | None = None
) -> Memory:
    """Predict the peak memory of the rank that needs most, under even load of the experts.

    Args:
        config: valid for so many ranks: see launcher/validation/rules.py.
        nodes: ranks of each node, such as [8, 8].
        device: of the ranks; on a CPU what is offloaded counts too.
        reserved: whether buckets count that are not written, by default on a GPU.

    Raises:
        LayoutError: the experts do not divide over the ranks.
    """
    dims = config.parallel.dims(sum(nodes))
    held = params_of_fullest_rank(config, dims)
    activations = activations_of(config, dims, device)
    states = [states_of(config, held, dims, experts=experts) for experts in (False, True)]
    overlaps = device == "cuda"
    step = _Step(config, held, dims, overlaps=overlaps, reserved=overlaps if reserved is None else reserved)
    peak = max(step.moments(activations), key=lambda alive: alive.total)
    teacher, offloads = teacher_of(config, held, dims), config.parallel.offload_optimizer
    items = [*_persistent(config, held, states, teacher, device), *peak.items(activations)]
    return Memory(
        items=tuple((name, size) for name, size in items if size),
        transient=peak.transient(activations),
        host_bytes=sum(state.host for state in states) + (teacher.average if offloads else 0),
        moment=peak.name,
        activations=activations.saved,
    )


def _persistent(
    config: RunConfig, held: RankParams, states: Sequence[States], teacher: TeacherBytes, device: Device
) -> Iterator[tuple[str, int]]:
    """What is there throughout."""
    dense, expert = states
    yield "dense parameters", dense.parameters
    yield "expert parameters", expert.parameters
    yield "masks and indices", element_bytes(config) * held.buffer_elements + held.index_bytes
    yield "dense optimizer states", dense.optimizer
    yield "expert optimizer states", expert.optimizer
    yield "teacher", teacher.parameters
    yield "teacher's average", 0 if config.parallel.offload_optimizer else teacher.average
    if device == "cpu":
        yield "offloaded states", dense.host + expert.host


@dataclass(frozen=True, kw_only=True)
class _Alive:
    """Bytes at one moment of a step, beside what is there throughout."""

    name: str
    snapshot: Snapshot
    moment: Moment | None = None  # while activations are there
    gathered: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        activations = self.moment.peak if self.moment else 0
        return (
            activations
            + self.gathered
            + sum(self.snapshot.gradients)
            + self.snapshot.buckets
            + self.snapshot.copies
        )

    def items(self, activations: Activations) -> Iterator[tuple[str, int]]:
        """Gradients, buffers, and the activations of the parts before the one at work."""
        yield "dense gradients", self.snapshot.gradients[0]
        yield "expert gradients", self.snapshot.gradients[1]
        yield "reduction buckets", self.snapshot.buckets
        yield "gathered parameters", self.gathered
        yield from self._whole_parts(activations)

    def transient(self, activations: Activations) -> tuple[str, int]:
        """The rest: what the part at work has, or the copies of a reduction or an update."""
        whole = sum(size for _, size in self._whole_parts(activations))
        return self.name, (self.moment.peak - whole if self.moment else 0) + self.snapshot.copies

    def _whole_parts(self, activations: Activations) -> list[tuple[str, int]]:
        if self.moment is None:
            return []
        parts = [name for name, _ in activations.saved]
        before = activations.saved[: parts.index(self.moment.part)]
        return [(name if name == BATCH else f"activations of {name}", size) for name, size in before]


class _Step:
    """The moments of an optimizer step of a rank."""

    def __init__(
        self, config: RunConfig, held: RankParams, dims: ParallelDims, *, overlaps: bool, reserved: bool
    ) -> None:
        section: Mapping[str, Any] = config.deepspeed.get("zero_optimization", {})
        self.width, stage = element_bytes(config), config.parallel.zero_stage
        sizes = gradient_sizes(config, held, dims, overlaps=overlaps, reserved=reserved)
        self.flow: Flow = flow_of(stage, sizes)
        self.gathered = Gathered.of(held, dims, section) if stage == 3 else None

    def moments(self, activations: Activations) -> Iterator[_Alive]:
        """From the forward pass of a micro-batch to the update."""
        before = self.flow.before()
        for moment in activations.forward:
            last = moment is activations.forward[-1]
            held = self._elements(self.gathered.forward(last=last)) if self.gathered else 0
            yield _Alive(name=f"forward of {moment.part}", snapshot=before, moment=moment, gathered=held)
        done = 0
        for moment in activations.backward:
            held = self._elements(self.gathered.backward(done)) if self.gathered else 0
            for snapshot in self.flow.take(moment.elements, int(moment.experts)):
                yield _Alive(
                    name=f"backward of {moment.part}", snapshot=snapshot, moment=moment, gathered=held
                )
            done += moment.elements
        small = self.width * self.gathered.small if self.gathered else 0
        for snapshot in self.flow.reduction():
            yield _Alive(name="reduction of gradients", snapshot=snapshot, gathered=small)
        for snapshot in self.flow.update():
            yield _Alive(name="update", snapshot=snapshot, gathered=small)

    def _elements(self, pair: tuple[int, int]) -> int:
        return self.width * sum(pair)


def gradient_sizes(
    config: RunConfig,
    held: RankParams,
    dims: ParallelDims,
    *,
    overlaps: bool,
    reserved: bool,
) -> GradientSizes:
    """What the flow of gradients is made of."""
    stage, ranks = config.parallel.zero_stage, (dims.world_size, dims.dp_size)
    by_kind = [[group for group in held.groups if group.experts == kind] for kind in (False, True)]
    parts = [[part_of(g, ranks[i], stage) for g in groups] for i, groups in enumerate(by_kind)]
    whole = [sum(group.elements for group in groups) for groups in by_kind]
    touched = [sum(touched_by(g, ranks[i]) for g in groups) for i, groups in enumerate(by_kind)]
    return GradientSizes(
        width=element_bytes(config),
        kept=gradient_bytes(config),
        whole=(whole[0], whole[1]),
        part=(sum(parts[0]), sum(parts[1])),
        touched=(touched[0], touched[1]),
        ranks=ranks,
        largest=max(size for group in held.groups for size in group.sizes),
        group_parts=tuple(size for kind in parts for size in kind),
        bucket=bucket_of(config, held, overlaps=overlaps),
        passes=max(1, config.train.grad_accum_steps(dims.world_size)),
        overlaps=overlaps,
        reserved=reserved,
        offload=config.parallel.offload_optimizer,
    )
