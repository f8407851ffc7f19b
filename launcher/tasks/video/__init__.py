"""Action recognition: a class for each video, by any model of clips. Its parts are imported when called."""

from collections.abc import Iterator, Sequence

from data_shards.format.video_names import VIDEO_SUFFIXES
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.class_rules import class_loss_errors
from launcher.tasks.spec import Planning, Predicting, TaskSpec
from launcher.tasks.video.options import VideoOptions
from parallel.lazy_exports import deferred

HERE = "launcher.tasks.video"
ANSWERS = "launcher.tasks.class_answers"
CLASSIFIER = "launcher.tasks.classification.shapes"
TRAINING = ("sampling", "interval", "fps")
FREE = ("clips", "crops", "eval_crop", "view_batch", "reader")


def _check(config: RunConfig) -> Sequence[str]:
    return [*class_loss_errors(config), *_view_errors(config), *_reader_errors(config)]


def _view_errors(config: RunConfig) -> Iterator[str]:
    """What bounds the views of a pass must not be more than there are."""
    options = options_of(config, VideoOptions)
    if options.view_batch > options.views:
        yield (
            f"video.view_batch ({options.view_batch}) must be at most video.clips ({options.clips}) x "
            f"video.crops ({options.crops}); 0 takes all views at once"
        )


def _reader_errors(config: RunConfig) -> Iterator[str]:
    """What decodes must be installed."""
    from data_shards.errors import DataError
    from data_shards.video.readers import find_reader  # which imports NumPy

    try:
        find_reader(options_of(config, VideoOptions).reader)
    except DataError as error:
        yield f"video.reader: {error}"


SPEC = TaskSpec(
    name="video",
    options=VideoOptions,
    check=_check,
    build=deferred(f"{HERE}.task:VideoTask"),
    model_on_meta=deferred(f"{CLASSIFIER}:model_on_meta"),
    backbone=deferred(f"{CLASSIFIER}:backbone"),
    train_data=deferred(f"{HERE}.data:train_data"),
    eval_data=deferred(f"{HERE}.data:eval_data"),
    on_change={**dict.fromkeys(TRAINING, "training"), **dict.fromkeys(FREE, "free")},
    planning=Planning(
        members=deferred(f"{HERE}.shapes:members"),
        inputs=deferred(f"{HERE}.shapes:inputs"),
        step=deferred(f"{HERE}.task:step"),
        decoding=deferred(f"{HERE}.shapes:decoding"),
    ),
    has_classes=True,
    sees="clips",
    predicting=Predicting(
        member="video",
        suffixes=VIDEO_SUFFIXES,
        data=deferred(f"{HERE}.data:predict_data"),
        columns=deferred(f"{ANSWERS}:columns"),
        answers=deferred(f"{ANSWERS}:answers"),
        one_by_one=True,  # all views of one video are a batch of their own
    ),
)
