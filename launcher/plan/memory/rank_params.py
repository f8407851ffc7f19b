"""What one rank holds of a model: the parameters of each optimizer group, counted on the meta device.

The rank is the one that holds most: of uneven experts the most, of uneven slices the largest.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from torch import nn

from launcher.config.schema import OptimConfig, RunConfig
from launcher.config.task_sections import section_names
from launcher.tasks.param_groups import ParameterRules, freeze, parameter_groups
from launcher.tasks.registry import model_on_meta, task_spec
from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import ExpertParallel, ExpertSlice, experts_of, sliced_of
from parallel.ranks.dims import ParallelDims
from parallel.zero.options import bucket_elements
from swin_moe.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """The trained parameters of one optimizer group, as DeepSpeed sees it: dense or experts, never both."""

    name: str
    experts: bool
    sizes: tuple[int, ...]  # elements of each parameter

    @property
    def elements(self) -> int:
        """Elements of all parameters."""
        return sum(self.sizes)


@dataclass(frozen=True, kw_only=True)
class RankParams:
    """The parameters and buffers of one rank."""

    groups: tuple[ParamGroup, ...]
    frozen: tuple[int, int]  # elements of dense and of expert parameters that are not trained
    buffer_elements: int  # of masks and coordinates, which take the precision of the model
    index_bytes: int  # of other buffers
    uneven: bool  # whether other ranks hold fewer parameters
    teacher: tuple[int, int]  # elements of dense and of expert parameters of a teacher

    @property
    def all_elements(self) -> tuple[int, int]:
        """Elements of dense parameters and of experts, trained or not."""
        return self.elements(experts=False), self.elements(experts=True)

    def elements(self, *, experts: bool) -> int:
        """Trained and frozen elements, dense or of experts."""
        trained = sum(group.elements for group in self.groups if group.experts == experts)
        return trained + self.frozen[int(experts)]


def fullest_placement(
    dims: ParallelDims, num_experts: int, options: ExchangeOptions | None = None
) -> ExpertParallel:
    """The experts of a rank that holds the most of them; no process group is needed.

    The last slice is never smaller than another: slices are cut at i * size // slices.
    """
    slices = dims.expert_tensor_parallel_size
    ranks = range(slices - 1, dims.ep_size, slices)
    local = max((dims.local_experts(rank, num_experts) for rank in ranks), key=len)
    return ExpertParallel(
        num_experts=num_experts,
        local_experts=local,
        part=ExpertSlice(slices - 1, slices, slices),
        ep_size=dims.ep_size,
        options=options or ExchangeOptions(),
    )


def params_of_fullest_rank(config: RunConfig, dims: ParallelDims) -> RankParams:
    """What the rank that holds most holds; counted once for each model and placement."""
    return _rank_params(
        _Counted(
            model=replace(config.model, activation_checkpoint_every=0),  # which parameters do not depend on
            task=task_key(config),
            optim=config.optim,
            ep_size=dims.ep_size,
            slices=dims.expert_tensor_parallel_size,
            config=config,
        )
    )


def bucket_of(config: RunConfig, held: RankParams, *, overlaps: bool) -> int:
    """Elements of a bucket of gradients, as the engine sets it; `held` is of the fullest rank."""
    uneven = sum(held.all_elements) if held.uneven and config.parallel.zero_stage > 0 else None
    return bucket_elements(config.deepspeed, overlaps=overlaps, uneven_elements=uneven)


def task_key(config: RunConfig) -> tuple[Any, ...]:
    """What a model depends on beside `config.model`: the task and its options."""
    return config.task, *(getattr(config, name) for name in section_names(type(config)))


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """What the parameters of a rank depend on."""

    model: ModelConfig
    task: tuple[Any, ...]
    optim: OptimConfig
    ep_size: int
    slices: int
    config: RunConfig = field(compare=False)


@lru_cache(maxsize=256)
def _rank_params(counted: _Counted) -> RankParams:
    model, optim, ep_size = counted.model, counted.optim, counted.ep_size
    rules = task_spec(counted.config.task).parameters
    dims = ParallelDims(world_size=ep_size, ep_size=ep_size, expert_tensor_parallel_size=counted.slices)
    placement = None if model.moe is None else fullest_placement(dims, model.moe.num_experts)
    made = model_on_meta(counted.config, placement)
    freeze(made, optim.freeze, rules)
    buffers = list(made.buffers())
    return RankParams(
        groups=tuple(_groups(made, optim, rules)),
        frozen=(_frozen(made, experts=False), _frozen(made, experts=True)),
        buffer_elements=sum(buffer.numel() for buffer in buffers if buffer.is_floating_point()),
        index_bytes=sum(buffer.nbytes for buffer in buffers if not buffer.is_floating_point()),
        uneven=model.moe is not None and _is_uneven(made, dims, model.moe.num_experts),
        teacher=_elements_of_teacher(counted.config, placement),
    )


def _elements_of_teacher(config: RunConfig, placement: ExpertParallel | None) -> tuple[int, int]:
    planning = task_spec(config.task).planning
    if planning is None or planning.teacher is None:
        return 0, 0
    parameters = list(planning.teacher.model_on_meta(config, placement).parameters())
    experts = sum(p.numel() for p in parameters if experts_of(p) is not None)
    return sum(p.numel() for p in parameters) - experts, experts


def _is_uneven(model: nn.Module, dims: ParallelDims, num_experts: int) -> bool:
    """Whether ranks hold different numbers of experts, or slices of different sizes."""
    counts = {len(dims.local_experts(rank, num_experts)) for rank in range(dims.ep_size)}
    sliced = (sliced_of(p) for p in model.parameters() if experts_of(p) is not None)
    return len(counts) > 1 or any(
        cut is not None and cut.size % dims.expert_tensor_parallel_size for cut in sliced
    )


def _groups(model: nn.Module, optim: OptimConfig, rules: ParameterRules) -> list[ParamGroup]:
    """The groups of tasks/param_groups.py, dense and expert parameters apart as DeepSpeed splits them."""
    groups = []
    for experts in (False, True):
        for group in parameter_groups(model, optim, rules):
            sizes = tuple(p.numel() for p in group["params"] if (experts_of(p) is not None) == experts)
            if sizes:
                groups.append(ParamGroup(name=group["name"], experts=experts, sizes=sizes))
    return groups


def _frozen(model: nn.Module, *, experts: bool) -> int:
    held = (p for p in model.parameters() if not p.requires_grad and (experts_of(p) is not None) == experts)
    return sum(parameter.numel() for parameter in held)
