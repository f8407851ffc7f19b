"""Image classification. Its parts are imported when they are called, as they need torch."""

from collections.abc import Iterator, Sequence

from launcher.config.schema import RunConfig
from launcher.tasks.spec import Planning, Predicting, TaskSpec
from parallel.lazy_exports import deferred

HERE = "launcher.tasks.classification"
IMAGES = "launcher.tasks.image_data"


def _check(config: RunConfig) -> Sequence[str]:
    return list(_threshold_errors(config))


def _threshold_errors(config: RunConfig) -> Iterator[str]:
    """The threshold must separate the class of an image from the others, whose probability smoothing sets."""
    threshold = config.optim.bce_target_threshold
    if threshold is None:
        return
    smoothing, classes = config.optim.label_smoothing, config.model.num_classes
    low = smoothing / classes
    high = 1 - smoothing + low
    if not low <= threshold < high:
        yield (
            f"optim.bce_target_threshold ({threshold}) must lie in [{low:.4g}, {high:.4g}): with "
            f"optim.label_smoothing ({smoothing}) and model.num_classes ({classes}) the class of an image "
            f"has the probability {high:.4g}, and each other class {low:.4g}"
        )


SPEC = TaskSpec(
    name="classification",
    check=_check,
    build=deferred(f"{HERE}.task:ClassificationTask"),
    model_on_meta=deferred(f"{HERE}.shapes:model_on_meta"),
    backbone=deferred(f"{HERE}.shapes:backbone"),
    train_data=deferred(f"{IMAGES}:train_labelled_images"),
    eval_data=deferred(f"{IMAGES}:eval_labelled_images"),
    planning=Planning(
        members=deferred(f"{HERE}.shapes:members"),
        inputs=deferred(f"{HERE}.shapes:inputs"),
        step=deferred(f"{HERE}.task:step"),
    ),
    has_classes=True,
    is_classifier=True,
    predicting=Predicting(
        data=deferred(f"{IMAGES}:eval_images"),
        columns=deferred(f"{HERE}.answers:columns"),
        answers=deferred(f"{HERE}.answers:answers"),
    ),
)
