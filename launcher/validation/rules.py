"""Everything about a run that can be found wrong before it starts: rules across sections, shards, layout."""

import math
from collections.abc import Sequence

from launcher.config.duration import to_steps
from launcher.config.load import ConfigError
from launcher.config.schema import ParallelConfig, RunConfig
from launcher.tasks.registry import task_spec
from launcher.validation.data_rules import data_errors
from launcher.validation.elastic import replan
from launcher.validation.lr_net_rules import lr_net_layout_errors
from launcher.validation.place_rules import has_begun, machine_errors, place_errors
from launcher.validation.run_rules import run_errors
from parallel.experts.options import ExchangeOptions
from parallel.ranks.dims import LayoutError, ParallelDims
from parallel.zero.optimizers import OptimizerError, import_apex
from swin_moe.errors import ModelError
from swin_moe.moe.backends.tutel import import_tutel
from swin_moe.moe_config import MoEConfig

MOST_WINDOWS = 2**16 - 1  # blocks of a CUDA grid in its second and third dimension


def check(
    config: RunConfig,
    world_size: int | None = None,
    nodes: Sequence[int] | None = None,
    *,
    here: bool = False,
) -> None:
    """Check a configuration against itself, its files and a number of ranks: what passes, trains.

    Args:
        config: valid option by option.
        world_size: ranks of the run; None leaves out the rules that need it.
        nodes: ranks of each node; None leaves out the rules that need them.
        here: whether the ranks are on this machine, so that its processor and its disks count.

    Raises:
        ConfigError: with every rule that does not hold, a line each.
    """
    if errors := problems(config, world_size, nodes, here=here):
        count = "one thing" if len(errors) == 1 else f"{len(errors)} things"
        lines = [*errors, *_elastic_hint(config, world_size)]
        raise ConfigError(f"{count} to correct:\n" + "\n".join(f"  {line}" for line in lines))


def problems(
    config: RunConfig,
    world_size: int | None = None,
    nodes: Sequence[int] | None = None,
    *,
    data: bool = True,
    here: bool = False,
) -> list[str]:
    """What `check` finds wrong, a line each; what several rules find is one line.

    Args:
        config: valid option by option.
        world_size: ranks of the run; None leaves out the rules that need it.
        nodes: ranks of each node; None leaves out the rules that need them.
        data: False leaves out shards, weights and the run directory, which may be on another machine.
        here: see `check`.
    """
    errors, num_samples = rule_errors(config, world_size, nodes), None
    if data:
        found, num_samples = data_errors(config)
        errors += [*found, *place_errors(config)]
    if here:
        errors += machine_errors(config)
    return list(dict.fromkeys(errors + run_errors(config, num_samples)))


def rule_errors(config: RunConfig, world_size: int | None, nodes: Sequence[int] | None = None) -> list[str]:
    """Where batch, layout and optimizer do not go together; needs neither data nor a run directory."""
    layout = _layout_errors(config, world_size)
    if nodes is not None and not layout:
        layout = _hierarchy_errors(config, nodes)
    return [
        *_batch_errors(config, world_size),
        *(task_spec(config.task).check_layout(config, world_size) if world_size is not None else ()),
        *(lr_net_layout_errors(config, world_size) if world_size is not None else ()),
        *_profile_errors(config, world_size),
        *_window_errors(config),
        *layout,
        *_optimizer_errors(config),
    ]


def _elastic_hint(config: RunConfig, world_size: int | None) -> list[str]:
    """That a run that has a checkpoint can go on over other ranks, where that is all that is wrong."""
    if world_size is None or not has_begun(config):
        return []
    try:
        _, plan = replan(config, world_size)
    except ConfigError:
        return []
    return [f"or go on with --elastic: {'; '.join(line.strip() for line in plan[1:])}"] if plan[1:] else []


def steps_in(duration: str, config: RunConfig, num_samples: int | None) -> int:
    """Optimizer steps of a duration of this run, whose epoch has `num_samples` images, if that is known."""
    return to_steps(duration, global_batch_size=config.train.global_batch_size, num_samples=num_samples)


def _batch_errors(config: RunConfig, world_size: int | None) -> list[str]:
    train, moe = config.train, config.model.moe
    errors = []
    step = train.micro_batch_size * (world_size or 1)
    if train.global_batch_size % step:
        ranks = f" x ranks ({world_size})" if world_size else ""
        errors.append(
            f"train.micro_batch_size ({train.micro_batch_size}){ranks} must divide train.global_batch_size "
            f"({train.global_batch_size}); {_suggestion(config, world_size or 1)} would do"
        )
    augment = config.data.augment
    if augment is not None and train.micro_batch_size % augment.group_size:
        errors.append(
            f"train.micro_batch_size ({train.micro_batch_size}) must be even, as data.augment mixes pairs of "
            "images; or set data.augment.mix_prob=0"
        )
    if moe is None:
        return errors
    batches = {"train.micro_batch_size": train.micro_batch_size}
    if moe.eval_capacity_factor:
        batches["train.eval_batch_size"] = train.eval_batch_size
    return errors + [
        f"model.moe.routing_group_images ({moe.routing_group_images}) must divide {name} ({size})"
        for name, size in batches.items()
        if size % moe.routing_group_images
    ]


def _profile_errors(config: RunConfig, world_size: int | None) -> list[str]:
    profile = config.train.profile
    if profile is None or world_size is None or max(profile.ranks) < world_size:
        return []
    return [
        f"train.profile.ranks ({list(profile.ranks)}) must be below the number of ranks ({world_size}); "
        "0 is the first rank"
    ]


def _window_errors(config: RunConfig) -> list[str]:
    """A micro-batch of more windows than torch's attention on a GPU can take in one batch of a training pass.

    Beyond that the kernel works in chunks, and the sum of the bias gradients of chunks of two sizes fails.
    """
    model, images = config.model, config.train.micro_batch_size
    if model.attention in ("mlp", "local_relation") or model.attention_chunk:
        return []
    windows = max(
        math.prod(
            -(-side // window)
            for side, window in zip(model.stage_resolution(i), model.stage_window(i), strict=True)
        )
        for i in range(len(model.depths))
    )
    if images * windows <= MOST_WINDOWS:
        return []
    fitting = MOST_WINDOWS // windows
    smaller = f"train.micro_batch_size={2 ** (fitting.bit_length() - 1)}, or " if fitting else ""
    return [
        f"train.micro_batch_size ({images}) x the windows of an image ({windows}) must be at most "
        f"{MOST_WINDOWS}, which the attention of a GPU takes at once; {smaller}"
        "model.attention_chunk=32768 would do"
    ]


def advice(config: RunConfig, device: str) -> list[str]:
    """What works on a GPU and is slow there, a line each."""
    if device == "cuda" and config.train.precision == "bf16" and config.parallel.zero_stage == 0:
        return [
            "parallel.zero_stage=0 in bf16 reads every gradient of a step on its own, hundreds of waits for "
            "the device; parallel.zero_stage=1 trains the same run without, on one rank too"
        ]
    return []


def _suggestion(config: RunConfig, world_size: int) -> str:
    """The micro-batch nearest to the requested one that fits ranks and routing groups, or a global batch."""
    requested, group = (
        config.train.micro_batch_size,
        config.model.moe.routing_group_images if config.model.moe else 1,
    )
    share, rest = divmod(config.train.global_batch_size, world_size)
    fitting = [size for size in range(group, share + 1, group) if share % size == 0] if rest == 0 else []
    if fitting:
        return f"train.micro_batch_size={min(fitting, key=lambda size: abs(size - requested))}"
    step = requested * world_size
    return f"train.global_batch_size={max(1, round(config.train.global_batch_size / step)) * step}"


def _layout_errors(config: RunConfig, world_size: int | None) -> list[str]:
    parallel, moe = config.parallel, config.model.moe
    ep_size, slices, strategy = (
        parallel.ep_size,
        parallel.expert_tensor_parallel_size,
        parallel.expert_exchange.strategy,
    )
    if moe is None:
        requested = {"ep_size": ep_size, "expert_tensor_parallel_size": slices}
        return [
            f"parallel.{n} ({v}) needs experts: set model.moe, or 1" for n, v in requested.items() if v > 1
        ]
    errors = _exchange_errors(config)
    try:
        dims = parallel.dims(ep_size)
    except LayoutError as error:
        errors.append(str(error))
    else:
        errors += _messages(lambda: dims.local_experts(0, moe.num_experts), LayoutError)
        if not isinstance(strategy, str):
            errors += _messages(lambda: dims.check_gather_degree(strategy), LayoutError)
    if world_size is not None:
        ranks = _messages(lambda: ParallelDims(world_size=world_size, ep_size=ep_size), LayoutError)
        fits = max(size for size in range(1, ep_size + 1) if world_size % size == 0)
        errors += [f"{error}; parallel.ep_size={fits} would do" for error in ranks]
    return errors


def _exchange_errors(config: RunConfig) -> list[str]:
    """What of the backend and of parallel.expert_exchange cannot be had with this model."""
    moe, exchange = config.model.moe, config.parallel.expert_exchange
    assert moe is not None
    errors = _backend_errors(moe, config.parallel)
    if exchange.padded and moe.capacity_factor == 0:
        errors.append(
            "parallel.expert_exchange.padded needs a bound on an expert's rows: set "
            f"model.moe.capacity_factor ({moe.capacity_factor}) other than 0, or padded=false"
        )
    if exchange != ExchangeOptions() and moe.backend != "native":
        errors.append(
            f"parallel.expert_exchange is for model.moe.backend=native, not {moe.backend}: leave the "
            "section out"
        )
    return errors


def _backend_errors(moe: MoEConfig, parallel: ParallelConfig) -> list[str]:
    """What the backends other than the native one cannot do."""
    ep_size, slices, errors = parallel.ep_size, parallel.expert_tensor_parallel_size, []
    if moe.backend == "tutel":
        errors += _messages(import_tutel, ModelError)
        if slices > 1 or moe.num_experts % ep_size:
            errors.append(
                f"model.moe.backend=tutel needs parallel.expert_tensor_parallel_size=1 (got {slices}) and "
                f"parallel.ep_size ({ep_size}) that divides model.moe.num_experts ({moe.num_experts}); set "
                "model.moe.backend=native"
            )
    return errors


def _hierarchy_errors(config: RunConfig, nodes: Sequence[int]) -> list[str]:
    """Why rows cannot travel inside of the nodes first and then across; the layout itself is right."""
    parallel, exchange = config.parallel, config.parallel.expert_exchange
    if config.model.moe is None or not exchange.hierarchical:
        return []
    if len(set(nodes)) > 1:
        return [
            "parallel.expert_exchange.hierarchical needs the same number of ranks on every node (got "
            f"{list(nodes)}); set hierarchical=false"
        ]
    slices, strategy = parallel.expert_tensor_parallel_size, exchange.strategy
    degrees = (
        {"ep": [1], "dp": [], "auto": [1, slices]}[strategy] if isinstance(strategy, str) else [strategy]
    )
    dims = parallel.dims(sum(nodes))
    return [
        error
        for degree in dict.fromkeys(degrees)
        for error in _messages(lambda g=degree: dims.check_hierarchy(nodes[0], g), LayoutError)
    ]


def _optimizer_errors(config: RunConfig) -> list[str]:
    """Where an optimizer cannot work: Apex's see what they are given, not the tensors it is a part of."""
    name, parallel, precision = config.optim.optimizer, config.parallel, config.train.precision
    stage, option = parallel.zero_stage, f"optim.optimizer={config.optim.optimizer}"
    errors = []
    if parallel.offload_optimizer and name != "adamw":
        errors.append(f"parallel.offload_optimizer is for optim.optimizer=adamw, not {name}: set it to false")
    if name == "fused_adam" and stage == 0 and precision != "fp32":
        errors.append(
            f"{option} with train.precision={precision} needs parallel.zero_stage of 1, 2 or 3 (got 0), as "
            "DeepSpeed flattens its masters at stage 0"
        )
    if name == "fused_lamb" and stage:
        errors.append(
            f"{option} needs whole tensors for its trust ratios: set parallel.zero_stage=0 (got {stage}), or "
            "optim.optimizer=lamb, which is right at every stage"
        )
    if name == "fused_lamb" and config.model.moe is not None:
        errors.append(
            f"{option} gives all experts of a rank one trust ratio, so that results would depend on the "
            "layout: set optim.optimizer=lamb, which gives each expert its own"
        )
    if name == "lamb" and stage == 3 and parallel.expert_tensor_parallel_size > 1:
        errors.append(
            f"{option} sums norms over the slices of an expert, which parallel.zero_stage=3 may take through "
            "in different pieces: set parallel.expert_tensor_parallel_size=1 "
            f"(got {parallel.expert_tensor_parallel_size}), or stage 2"
        )
    if name.startswith("fused_"):
        errors += _messages(lambda: import_apex(name), OptimizerError)
    return errors


def _messages(action: object, kind: type[ValueError]) -> list[str]:
    """What `action` complains about."""
    try:
        action()  # type: ignore[operator]
    except kind as error:
        return [str(error)]
    return []
