"""Everything about a run that can be found wrong before it starts: rules across sections, shards, layout."""

import math

from data_shards.errors import DataError
from data_shards.loading import checked_manifest
from data_shards.patterns import expand, names_tars
from launcher.config import ConfigError
from launcher.duration import parse_duration, to_steps
from launcher.elastic import replan
from launcher.run_directory import RunDirectory
from launcher.schema import RunConfig
from parallel.commit import committed
from parallel.expert import ExchangeOptions
from parallel.mesh import LayoutError, ParallelDims
from parallel.optimizers import OptimizerError, import_apex
from parallel.zero_config import check_zero_section
from swin_moe.config import ModelError
from swin_moe.tutel_backend import import_tutel

MOST_WINDOWS = 2**16 - 1  # blocks of a CUDA grid in its second and third dimension


def check(config: RunConfig, world_size: int | None = None) -> None:
    """Check a configuration against itself, its shards and a number of ranks.

    Args:
        config: valid option by option.
        world_size: ranks of the run; None leaves out the rules that need it.

    Raises:
        ConfigError: with every rule that does not hold, a line each.
    """
    if errors := problems(config, world_size):
        count = "one thing" if len(errors) == 1 else f"{len(errors)} things"
        lines = [*errors, *_elastic_hint(config, world_size)]
        raise ConfigError(f"{count} to correct:\n" + "\n".join(f"  {line}" for line in lines))


def problems(config: RunConfig, world_size: int | None = None, *, data: bool = True) -> list[str]:
    """What `check` finds wrong, a line each; `data=False` leaves out the shards, which may be elsewhere."""
    errors = rule_errors(config, world_size)
    if config.task == "simmim" and config.data.augment is not None:
        errors.append("data.augment is for task=classification: leave it out (null) for task=simmim")
    errors += [*(_data_errors(config) if data else []), *_duration_errors(config)]
    return errors + _messages(lambda: check_zero_section(config.deepspeed), ValueError)


def rule_errors(config: RunConfig, world_size: int | None) -> list[str]:
    """Where batch, layout and optimizer do not go together; needs neither data nor a run directory."""
    return [
        *_batch_errors(config, world_size),
        *_window_errors(config),
        *_layout_errors(config, world_size),
        *_optimizer_errors(config),
    ]


def _elastic_hint(config: RunConfig, world_size: int | None) -> list[str]:
    """That a run that has a checkpoint can go on over other ranks, where that is all that is wrong."""
    if world_size is None or not committed(RunDirectory(config.run_dir).checkpoints):
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


def _window_errors(config: RunConfig) -> list[str]:
    """A micro-batch of more windows than torch's attention on a GPU can take in one batch of a training pass.

    Beyond that the kernel works in chunks, and the sum of the bias gradients of chunks of two sizes fails.
    """
    model, images = config.model, config.train.micro_batch_size
    if model.attention == "mlp" or model.windows_at_a_time:
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
    return [
        f"train.micro_batch_size ({images}) x the windows of an image ({windows}) must be at most "
        f"{MOST_WINDOWS}, which the attention of a GPU takes at once; train.micro_batch_size="
        f"{2 ** int(math.log2(MOST_WINDOWS // windows))}, or model.windows_at_a_time=32768, would do"
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
    """The micro-batch nearest to the one asked for that fits ranks and routing groups, or a global batch."""
    asked, group = (
        config.train.micro_batch_size,
        config.model.moe.routing_group_images if config.model.moe else 1,
    )
    share, rest = divmod(config.train.global_batch_size, world_size)
    fitting = [size for size in range(group, share + 1, group) if share % size == 0] if rest == 0 else []
    if fitting:
        return f"train.micro_batch_size={min(fitting, key=lambda size: abs(size - asked))}"
    step = asked * world_size
    return f"train.global_batch_size={max(1, round(config.train.global_batch_size / step)) * step}"


def _layout_errors(config: RunConfig, world_size: int | None) -> list[str]:
    parallel, moe = config.parallel, config.model.moe
    ep_size, slices, strategy = parallel.ep_size, parallel.expert_slices, parallel.expert_exchange.strategy
    if moe is None:
        asked = {"ep_size": ep_size, "expert_slices": slices}
        return [f"parallel.{n} ({v}) needs experts: set model.moe, or 1" for n, v in asked.items() if v > 1]
    errors = _exchange_errors(config)
    try:
        dims = ParallelDims(world_size=ep_size, ep_size=ep_size, expert_slices=slices)
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
    errors = _messages(import_tutel, ModelError) if moe.backend == "tutel" else []
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
    if name == "lamb" and stage == 3 and parallel.expert_slices > 1:
        errors.append(
            f"{option} sums norms over the slices of an expert, which parallel.zero_stage=3 may take through "
            f"in different pieces: set parallel.expert_slices=1 (got {parallel.expert_slices}), or stage 2"
        )
    if name.startswith("fused_"):
        errors += _messages(lambda: import_apex(name), OptimizerError)
    return errors


def _data_errors(config: RunConfig) -> list[str]:
    errors = []
    for option, directory in (("data.train", config.data.train), ("data.val", config.data.val)):
        try:
            if names_tars(directory):  # of data.train alone, see DataConfig
                expand(directory)
                continue
            manifest = checked_manifest(directory, cached=config.data.cache is not None)
        except DataError as error:
            errors.append(f"{option}: {error}")
            continue
        if config.task == "classification" and len(manifest.classes) != config.model.num_classes:
            errors.append(
                f"model.num_classes ({config.model.num_classes}) must be the classes of {option} "
                f"({len(manifest.classes)} in {directory})"
            )
    return errors


def _duration_errors(config: RunConfig) -> list[str]:
    durations: dict[str, str | None] = {
        "train.duration": config.train.duration,
        "train.eval_every": config.train.eval_every,
        "train.moe_load_every": config.train.moe_load_every,
        "optim.warmup": config.optim.warmup,
        "optim.decay_every": config.optim.decay_every if config.optim.schedule == "step" else None,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep_every": config.checkpoint.keep_every,
    }
    durations |= {f"optim.decay_at[{i}]": text for i, text in enumerate(config.optim.decay_at)}
    errors = []
    num_samples = None if names_tars(config.data.train) else 1
    for option, text in durations.items():
        if text is None:
            continue
        found = _messages(
            lambda t=text: to_steps(t, global_batch_size=1, num_samples=num_samples), ValueError
        )
        errors += [f"{option}: {message}" for message in found]
        if not found and option != "optim.warmup" and parse_duration(text).amount == 0:
            errors.append(f"{option} ({text}) must be more than nothing")
    return errors


def _messages(action: object, kind: type[ValueError]) -> list[str]:
    """What `action` complains about."""
    try:
        action()  # type: ignore[operator]
    except kind as error:
        return [str(error)]
    return []
