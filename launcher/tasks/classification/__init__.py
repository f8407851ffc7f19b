"""Image classification. Its parts are imported when they are called, as they need torch."""

from launcher.tasks.class_rules import class_loss_errors
from launcher.tasks.spec import Planning, Predicting, TaskSpec
from parallel.lazy_exports import deferred

HERE = "launcher.tasks.classification"
IMAGES = "launcher.tasks.image_data"
ANSWERS = "launcher.tasks.class_answers"

SPEC = TaskSpec(
    name="classification",
    check=class_loss_errors,
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
    takes_lr_net=True,
    predicting=Predicting(
        data=deferred(f"{IMAGES}:eval_images"),
        columns=deferred(f"{ANSWERS}:columns"),
        answers=deferred(f"{ANSWERS}:answers"),
    ),
)
