"""What one micro-batch keeps for its backward pass, counted by running the model on tensors without memory.

The model is the real one, on shapes alone (`shapes.py`): attention takes plain products on a CPU and a fused
kernel on a GPU. So what is counted is what autograd saves, with and without checkpointing; of MoE layers
under even load (`balanced_moe.py`). What operators allocate inside is not seen: see docs/planner.md.

Legend: B images of H x W pixels.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from launcher.config.schema import OptimConfig, RunConfig
from launcher.plan.base.hardware import Device
from launcher.plan.base.shapes import on_shapes, placed
from launcher.plan.base.tracker import LiveBytes
from launcher.plan.memory.balanced_moe import balance_experts
from launcher.plan.memory.rank_params import fullest_placement, task_key
from launcher.plan.memory.separate_teacher import forward_of, separate_teacher
from launcher.tasks.param_groups import freeze
from launcher.tasks.registry import model_on_meta, planning_of, task_spec
from launcher.tasks.spec import StepOutput
from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import experts_of
from parallel.ranks.dims import ParallelDims
from parallel.zero.dtypes import DTYPES
from swin_moe.backbone.group_batch_norm import in_one_group
from swin_moe.config import ModelConfig
from swin_moe.random.keyed import sample_keys

BATCH, PATCHES, HEAD = "input batch", "patch embedding", "head and loss"
TEACHER = "teacher"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A stretch of a pass: forward through one part, or backward from one gradient to the next."""

    part: str  # of the model
    peak: int  # bytes of activations and what is computed from them, the new gradient among it
    elements: int = 0  # of the parameter
    experts: bool = False


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of one micro-batch on one rank."""

    saved: tuple[tuple[str, int], ...]  # by part of the model, at the end of the forward pass
    forward: tuple[Moment, ...]  # part by part
    backward: tuple[Moment, ...]  # gradient by gradient

    @property
    def total(self) -> int:
        """All that is alive when the backward pass begins."""
        return sum(size for _, size in self.saved)


@dataclass(frozen=True, kw_only=True)
class _PassSpec:
    """What the activations of a pass depend on."""

    model: ModelConfig
    task: tuple[Any, ...]
    images: int
    precision: str
    ep_size: int
    slices: int
    exchange: ExchangeOptions
    optim: OptimConfig
    mixed: bool  # targets are probabilities
    device: Device
    config: RunConfig = field(compare=False)


def activations_of(config: RunConfig, dims: ParallelDims, device: Device) -> Activations:
    """What one micro-batch of a run keeps, on the rank that computes most; counted once for equal passes."""
    return _activations(
        _PassSpec(
            model=config.model,
            task=task_key(config),
            images=config.train.micro_batch_size,
            precision=config.train.precision,
            ep_size=dims.ep_size,
            slices=dims.expert_tensor_parallel_size,
            exchange=replace(config.parallel.expert_exchange, hierarchical=False),  # two hops need no more
            optim=config.optim,  # its loss, and what it freezes
            mixed=config.data.augment is not None,
            device=device,
            config=config,
        )
    )


@lru_cache(maxsize=512)
def _activations(spec: _PassSpec) -> Activations:
    model, teacher = _model(spec), separate_teacher(spec.config)
    with on_shapes(spec.device):
        if teacher is not None:
            teacher = placed(teacher, spec.device)
        return _Counter(spec, placed(model, spec.device), teacher).run()


def _model(spec: _PassSpec) -> nn.Module:
    """The model on meta, with the experts of the rank that holds most."""
    placement = None
    if spec.model.moe is not None:
        dims = ParallelDims(
            world_size=spec.ep_size, ep_size=spec.ep_size, expert_tensor_parallel_size=spec.slices
        )
        placement = fullest_placement(dims, spec.model.moe.num_experts, spec.exchange)
    model = model_on_meta(spec.config, placement)
    if spec.optim.freeze:
        freeze(model, spec.optim.freeze, task_spec(spec.config.task).parameters)
    balance_experts(model)
    return model.to(DTYPES[spec.precision]).train()


class _Counter:
    """Counts one forward and one backward pass of a model."""

    def __init__(self, spec: _PassSpec, model: nn.Module, teacher: nn.Module | None) -> None:
        self.spec, self.model, self.teacher, self.tracker = spec, model, teacher, LiveBytes()
        self.marks: list[tuple[str, int]] = []
        self.forward: list[Moment] = []
        self.backward: list[Moment] = []
        self.task = task_spec(spec.config.task)
        self.parts = {parameter: self._part(name) for name, parameter in model.named_parameters()}
        for module in (model, teacher) if teacher is not None else (model,):
            for tensor in (*module.parameters(), *module.buffers()):
                self.tracker.ignore(tensor)
        self._mark_parts()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._take_gradient)

    def run(self) -> Activations:
        """Both passes."""
        with self.tracker:
            output = self._step()
            loss = output.loss + output.aux_loss
            self._mark("backward")
            loss.backward()
        return Activations(saved=self._saved(), forward=tuple(self.forward), backward=tuple(self.backward))

    def _saved(self) -> tuple[tuple[str, int], ...]:
        """What each part added in all of its passes.

        The batch, of which the rest goes when the loss is there, comes first.
        """
        before, grown = 0, dict[str, int]()
        for name, live in self.marks:
            grown[name] = grown.get(name, 0) + live - before
            before = live
        grown[BATCH] += grown.pop("backward")
        return tuple(grown.items())

    def _step(self) -> StepOutput:
        """As training computes it: the members of a batch, its inputs, and the forward pass."""
        config, samples = self.spec.config, self.spec.images
        planning = planning_of(config)
        keys = sample_keys(0, torch.empty(samples, dtype=torch.int64))
        members = planning.members(config, samples)
        if self.spec.device == "cpu":  # they are on the host already: see estimate.py
            for tensor in members.values():
                self.tracker.ignore(tensor)
        in_one_group(self.model, samples)  # batch norms take what one rank holds for a group
        inputs = planning.inputs(config, members)
        del members
        self._mark(BATCH)
        if self.teacher is not None:  # what it gives counts as an input of the step
            forward_of(config, self.teacher)(samples)
            self._mark(TEACHER)
        output = planning.step(config, self.model, inputs, keys)
        self._mark(HEAD)
        return output

    def _mark_parts(self) -> None:
        backbone = self.task.backbone(self.model)
        parts: dict[str, nn.Module] = {PATCHES: backbone.patch_embed}
        parts |= {f"stage {i}": stage for i, stage in enumerate(backbone.layers)}
        for name, module in parts.items():
            module.register_forward_hook(lambda *_, name=name: self._mark(name))

    def _mark(self, name: str) -> None:
        self.marks.append((name, self.tracker.live))
        self.forward.append(Moment(part=name, peak=self.tracker.reset_peak()))

    def _take_gradient(self, parameter: nn.Parameter) -> None:
        parameter.grad = None  # what becomes of it is the engine's: see gradient_buckets.py
        self.backward.append(
            Moment(
                part=self.parts[parameter],
                peak=self.tracker.reset_peak(),
                elements=parameter.numel(),
                experts=experts_of(parameter) is not None,
            )
        )

    def _part(self, name: str) -> str:
        """The part of the model that a parameter belongs to."""
        rules = self.task.parameters
        part, *rest = name.removeprefix(rules.backbone).split(".")
        if part == "layers":
            return f"stage {rest[0]}"
        return PATCHES if part == "patch_embed" or name.startswith(rules.first_layer) else HEAD
