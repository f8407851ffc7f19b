"""Seconds of a model's pieces on a hardware, remembered, because most layouts of a search share them."""

from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Hardware
from launcher.plan.base.trace import Trace, TracedOp
from launcher.plan.memory.separate_teacher import teacher_trace
from launcher.plan.time.roofline import ops_s
from launcher.plan.time.traffic import accumulation, experts_held, gather_degree
from launcher.plan.time.workload import Experts, Workload, describe, expert_ops, expert_rows, flops_by_part
from launcher.tasks.registry import planning_of
from parallel.ranks.dims import ParallelDims

TEACHER = "teacher"  # the name of what its forward pass takes
EXPERTS = "experts"  # the end of the name of what the experts of a stage take
Both = tuple[float, float]  # seconds forward and backward


@dataclass(frozen=True, kw_only=True)
class ComputeCost:
    """The work of one model on one hardware, in one precision."""

    work: Workload
    hardware: Hardware
    precision: str
    teacher: Trace | None = None  # of a teacher that is another model, by samples
    dense: dict[int, list[tuple[str, bool, Both]]] = field(default_factory=dict)  # by micro-batch
    experts: dict[tuple[str, float, float, int], Both] = field(default_factory=dict)

    @cached_property
    def multiply_adds(self) -> float:
        """Of one view forward, no token dropped."""
        return sum(flops_by_part(self.work).values())

    @cached_property
    def teacher_multiply_adds(self) -> float:
        """Of a teacher on one sample."""
        if self.teacher is not None:
            return sum(op.multiply_adds for op in self.teacher.at(1)[0])
        return self.work.teacher_views * self.multiply_adds

    @cached_property
    def launch_s(self) -> float:
        """Of the host, to launch one micro-batch of the dense parts, forward and backward."""
        launches = sum(
            part.number * op.launches for part in self.work.parts for ops in part.trace.at(1) for op in ops
        )
        return launches * self.hardware.launch_us * 1e-6

    def hooks_s(self, config: RunConfig, dims: ParallelDims, compute_s: float) -> float:
        """Seconds that a step waits for the hooks of ZeRO 3, beside `compute_s` of computing.

        A module's hooks cost as much forward as backward, so activation checkpointing adds a half in blocks.
        """
        if config.parallel.zero_stage != 3:
            return 0.0
        again = self.work.block_modules / 2 if config.model.activation_checkpoint_every else 0.0
        steps = accumulation(config, dims)
        host_s = steps * (self.work.modules + again) * self.hardware.zero3_module_us * 1e-6
        if self.hardware.device == "cpu":
            return host_s
        return max(0.0, host_s + steps * self.launch_s - compute_s)

    def compute_s(self, config: RunConfig, dims: ParallelDims) -> dict[str, float]:
        """Seconds of a step's computing by stage, and of the experts of each."""
        steps, again = accumulation(config, dims), 2 if config.model.activation_checkpoint_every else 1
        micro = config.train.micro_batch_size
        seconds: dict[str, float] = {}
        for stage, in_block, (forward, backward) in self._dense(micro * self.work.views):
            once = forward * (again if in_block else 1) + backward
            seconds[stage] = seconds.get(stage, 0.0) + once * steps
        for experts in self.work.experts:
            forward, backward = self._experts(config, dims, experts, micro * self.work.views)
            seconds[f"{experts.stage} {EXPERTS}"] = (forward * again + backward) * experts.layers * steps
        if views := self.work.teacher_views:
            passes = [forward for _, _, (forward, _) in self._dense(micro * views)]
            passes += [self._experts(config, dims, e, micro * views)[0] * e.layers for e in self.work.experts]
            seconds[TEACHER] = sum(passes) * steps
        if self.teacher is not None:
            seconds[TEACHER] = ops_s(self.teacher.at(micro)[0], self.hardware, self.precision) * steps
        return seconds

    def _dense(self, micro: int) -> list[tuple[str, bool, Both]]:
        """Stage, whether it is in a block, and the seconds of all such parts of a micro-batch."""
        if micro not in self.dense:
            self.dense[micro] = []
            for part in self.work.parts:
                # routing is fp32 whatever the precision (swin_moe/moe/routers/base.py)
                precision = "fp32" if part.name == "router" else self.precision
                f, b = (ops_s(ops, self.hardware, precision) * part.number for ops in part.trace.at(micro))
                self.dense[micro].append((part.stage, part.in_block, (f, b)))
        return self.dense[micro]

    def _experts(self, config: RunConfig, dims: ParallelDims, experts: Experts, images: int) -> Both:
        """One MoE layer's experts at the rank that holds most, and putting rows in order for them."""
        moe, degree = config.model.moe, gather_degree(config, dims, experts)
        assert moe is not None
        padded = config.parallel.expert_exchange.padded
        slices = max(1, dims.expert_tensor_parallel_size // degree)
        sent = expert_rows(config.model, experts.length, images=images, padded=padded) * slices
        held = experts_held(config, dims)
        uneven = held * (dims.ep_size // dims.expert_tensor_parallel_size) / moe.num_experts
        count = held * max(1, degree // dims.expert_tensor_parallel_size)
        travels = dims.ep_size > degree
        key = (experts.stage, sent * uneven, count, slices if travels else -slices)
        if key not in self.experts:
            forward, backward = expert_ops(experts, rows=key[1], count=count, slices=slices)
            if travels:  # into the order of the experts and back: read and written twice
                order = TracedOp("copy", elements=4 * sent * experts.dim, launches=2)
                forward, backward = [*forward, order], [*backward, order]
            f, b = (ops_s(ops, self.hardware, self.precision) for ops in (forward, backward))
            self.experts[key] = f, b
        return self.experts[key]


def compute_cost(config: RunConfig, hardware: Hardware) -> ComputeCost:
    """Of a run's model in its task."""
    planning = planning_of(config)
    heads = partial(planning.heads, config) if planning.heads else None
    work = replace(
        describe(config.model, heads, device=hardware.device),
        views=planning.views,
        teacher_views=planning.teacher_views,
    )
    return ComputeCost(
        work=work,
        hardware=hardware,
        precision=config.train.precision,
        teacher=teacher_trace(config, hardware.device),
    )
