"""Rules across the sections of a run that hold on any number of ranks and need no file: each an equation."""

from collections.abc import Iterator

from launcher.config.duration import parse_duration, parse_evaluations, to_steps
from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.metrics.trackers.registry import tracking_errors
from launcher.tasks.param_groups import freeze
from launcher.tasks.registry import model_on_meta, task_spec
from launcher.validation.capacity_rules import capacity_errors
from launcher.validation.lr_net_rules import lr_net_errors
from parallel.zero.options import check_with_deepspeed
from swin_moe.errors import ModelError

CHANNELS = 3  # of every image that the data pipeline decodes


def run_errors(config: RunConfig, num_samples: int | None = None) -> list[str]:
    """What is wrong with a run whatever its ranks, a line each.

    Args:
        config: valid option by option.
        num_samples: images an epoch; None where that is not known.
    """
    errors = [*task_errors(config), *lr_net_errors(config), *capacity_errors(config.model)]
    errors += _freeze_errors(config)
    errors += _evaluation_errors(config)
    errors += _duration_errors(config) or [
        *_rate_errors(config),
        *_length_errors(config, num_samples),
        *_profile_errors(config, num_samples),
    ]
    errors += tracking_errors(config.tracking)
    try:
        check_with_deepspeed(config.deepspeed)
    except ValueError as error:
        errors.append(str(error))
    return errors


def task_errors(config: RunConfig) -> list[str]:
    """What is wrong with the options of the task, and with those that its samples and its loss decide."""
    model, spec = config.model, task_spec(config.task)
    errors = [*_clip_errors(config), *spec.check(config)]
    if config.optim.loss == "bce" and not spec.has_classes:
        errors.append(
            "optim.loss (bce) is for tasks with classes, such as classification; this run has "
            f"task={config.task}"
        )
    if model.in_chans != CHANNELS:
        errors.append(
            f"model.in_chans ({model.in_chans}) must be {CHANNELS}: the images of data.train are RGB, and "
            "gray ones get three equal channels"
        )
    return errors


def _clip_errors(config: RunConfig) -> Iterator[str]:
    """A task of images needs a model of images, and a task of clips one of clips."""
    frames, sees = config.model.frames, task_spec(config.task).sees
    if frames and sees == "images":
        yield f"model.frames ({frames}) must be 0, as task={config.task} sees images"
    if not frames and sees == "clips":
        yield f"model.frames ({frames}) must be above 0, as task={config.task} sees clips of so many frames"


def _freeze_errors(config: RunConfig) -> list[str]:
    """What `optim.freeze` names must be there, and something must be left to train."""
    if not config.optim.freeze:
        return []
    try:
        freeze(model_on_meta(config), config.optim.freeze, task_spec(config.task).parameters)
    except (ConfigError, ModelError) as error:  # of the model too, which the rules of its task name likewise
        return [str(error)]
    return []


def _rate_errors(config: RunConfig) -> Iterator[str]:
    """A warm-up rises to the peak, and cosine and poly fall from it."""
    optim = config.optim
    bounded = {
        "warmup_lr": parse_duration(optim.warmup).amount > 0 and optim.warmup_ratio is None,
        "min_lr": optim.schedule in ("cosine", "poly"),
    }
    for name, counts in bounded.items():
        if counts and (value := getattr(optim, name)) > optim.base_lr:
            yield f"optim.{name} ({value}) must be at most optim.base_lr ({optim.base_lr})"


def _evaluation_errors(config: RunConfig) -> Iterator[str]:
    """What evaluations decide needs evaluations on the way."""
    deciding = {
        "checkpoint.keep_best": config.checkpoint.keep_best,
        "train.early_stop.patience": config.train.early_stop and config.train.early_stop.patience,
    }
    for option, value in deciding.items():
        if value and config.data.val is None:
            yield f"{option} ({value}) needs data.val (null): without it nothing is evaluated"
        if value and config.train.eval_every is None:
            yield (
                f"{option} ({value}) needs train.eval_every (null): without it only the end of the run is "
                "evaluated; set it to a duration, such as 1 epochs"
            )
    stop = config.train.early_stop
    if stop and parse_evaluations(stop.patience) == 0:
        yield f"train.early_stop.patience ({stop.patience}) must be at least 1 evaluation"


def _patience(config: RunConfig) -> str | None:
    """The patience of an early stop, where it is a duration."""
    stop = config.train.early_stop
    return stop.patience if stop and parse_evaluations(stop.patience) is None else None


def _durations(config: RunConfig) -> dict[str, str]:
    """Every duration of a run that counts, by its option."""
    durations = {
        "train.duration": config.train.duration,
        "train.eval_every": config.train.eval_every,
        "train.moe_load_every": config.train.moe_load_every,
        "optim.warmup": config.optim.warmup,
        "optim.decay_every": config.optim.decay_every if config.optim.schedule == "step" else None,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep_every": config.checkpoint.keep_every,
        "train.early_stop.patience": _patience(config),
        **{f"optim.decay_at[{i}]": text for i, text in enumerate(config.optim.decay_at)},
    }
    return {option: text for option, text in durations.items() if text is not None}


def _duration_errors(config: RunConfig) -> list[str]:
    errors = []
    num_samples = None if config.data.trains_on_tars else 1
    for option, text in _durations(config).items():
        try:
            to_steps(text, global_batch_size=1, num_samples=num_samples)
        except ValueError as error:
            errors.append(f"{option}: {error}")
            continue
        if option != "optim.warmup" and parse_duration(text).amount == 0:
            errors.append(f"{option} ({text}) must be more than nothing")
    return errors


def _length_errors(config: RunConfig, num_samples: int | None) -> Iterator[str]:
    """The warm-up and every decay must lie inside of the run; all durations are well formed."""
    total = config.train.duration
    for option, text in _durations(config).items():
        is_decay = option.startswith("optim.decay_at")
        if option != "optim.warmup" and not is_decay:
            continue
        lengths = _comparable(text, total, config, num_samples)
        if lengths is None or lengths[0] < lengths[1] or (not is_decay and lengths[0] == lengths[1]):
            continue
        bound = "below" if is_decay else "at most"
        effect = "" if is_decay else "; the peak learning rate would never be reached"
        yield (
            f"{option} ({text}) must be {bound} train.duration ({total}): {lengths[0]} and {lengths[1]} "
            f"steps{effect}"
        )


def _profile_errors(config: RunConfig, num_samples: int | None) -> Iterator[str]:
    """The profiled steps must lie inside of the run."""
    profile, total = config.train.profile, config.train.duration
    lengths = profile and _comparable(f"{profile.last} steps", total, config, num_samples)
    if profile and lengths and lengths[0] > lengths[1]:
        yield (
            f"train.profile.steps ({profile.steps}) must not go beyond train.duration ({total}): the last "
            f"step is {lengths[1]}"
        )


def _comparable(
    first: str, second: str, config: RunConfig, num_samples: int | None
) -> tuple[int, int] | None:
    """Two durations in steps; None where one is in epochs whose size is not known."""
    in_epochs = [parse_duration(text).unit == "epoch" for text in (first, second)]
    if num_samples is None and any(in_epochs) and not all(in_epochs):
        return None
    batch = config.train.global_batch_size
    one, other = (
        to_steps(text, global_batch_size=batch, num_samples=num_samples or batch) for text in (first, second)
    )
    return one, other
