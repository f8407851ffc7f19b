"""Contrastive pre-training: MoBY (Xie et al. 2021, arXiv:2105.04553). The parts are imported when called."""

from collections.abc import Iterator, Sequence

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.dense_rules import norm_group_errors, norm_layout_errors
from launcher.tasks.moby.options import VIEWS, MoBYOptions
from launcher.tasks.parameter_rules import ParameterRules
from launcher.tasks.spec import PlannedTeacher, Planning, Predicting, TaskSpec
from parallel.lazy_exports import deferred

HERE = "launcher.tasks.moby"
NORM_GROUP = "moby.head.norm_group_images"
TRAINING = (
    "head.norm_group_images",
    "temperature",
    "momentum",
    "momentum_end",
    "colours",
    "colours.jitter_prob",
    "colours.brightness",
    "colours.contrast",
    "colours.saturation",
    "colours.hue",
    "colours.gray_prob",
    "colours.blur_prob",
    "colours.blur_sigma",
    "colours.solarize_prob",
    "colours.solarize_threshold",
)


def _check(config: RunConfig) -> Sequence[str]:
    group = options_of(config, MoBYOptions).head.norm_group_images
    return [*_errors(config), *norm_group_errors(config, NORM_GROUP, group)]


def _errors(config: RunConfig) -> Iterator[str]:
    options, batch = options_of(config, MoBYOptions), config.train.global_batch_size
    if config.data.augment is not None:
        yield ("data.augment is for task=classification: leave it out (null) for task=moby; see moby.colours")
    if options.queue % batch:
        fit = max(1, options.queue // batch) * batch
        yield (
            f"moby.queue ({options.queue}) must be a multiple of train.global_batch_size ({batch}), whose "
            f"keys enter it together; set it to {fit}"
        )


def _check_layout(config: RunConfig, world_size: int) -> Sequence[str]:
    group = options_of(config, MoBYOptions).head.norm_group_images
    return norm_layout_errors(config, world_size, NORM_GROUP, group)


SPEC = TaskSpec(
    name="moby",
    options=MoBYOptions,
    build=deferred(f"{HERE}.task:MoBYTask"),
    model_on_meta=deferred(f"{HERE}.shapes:model_on_meta"),
    backbone=deferred("launcher.tasks.encoder:encoder_of"),
    train_data=deferred(f"{HERE}.data:train_data"),
    eval_data=deferred(f"{HERE}.data:eval_data"),
    check=_check,
    check_layout=_check_layout,
    on_change={**dict.fromkeys(TRAINING, "training"), "pictures": "free"},
    planning=Planning(
        members=deferred(f"{HERE}.shapes:members"),
        inputs=deferred(f"{HERE}.shapes:inputs"),
        step=deferred(f"{HERE}.shapes:step"),
        heads=deferred(f"{HERE}.shapes:heads"),
        views=VIEWS,
        teacher=PlannedTeacher(deferred(f"{HERE}.shapes:target_on_meta"), views=VIEWS),
    ),
    parameters=ParameterRules(backbone="encoder.", heads=("projector.", "predictor.")),
    predicting=Predicting(
        data=deferred(f"{HERE}.data:image_data"),
        columns=deferred(f"{HERE}.answers:columns"),
        answers=deferred(f"{HERE}.answers:answers"),
    ),
)
