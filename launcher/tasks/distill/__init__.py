"""Feature distillation: the last map of a frozen teacher, token by token (Wei et al. 2022, arXiv:2205.14141).

Its parts are imported when they are called, as they need torch.
"""

from collections.abc import Iterator, Sequence

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.distill.options import DistillOptions
from launcher.tasks.parameter_rules import ParameterRules
from launcher.tasks.spec import PlannedTeacher, Planning, Predicting, TaskSpec
from launcher.tasks.teacher_rules import MAY_MOVE, TEACHER_PATHS
from parallel.lazy_exports import deferred
from swin_moe.errors import ModelError
from swin_moe.heads.distill_config import student_stage

HERE = "launcher.tasks.distill"
IMAGES = "launcher.tasks.image_data"


def _check(config: RunConfig) -> Sequence[str]:
    return list(_errors(config))


def _errors(config: RunConfig) -> Iterator[str]:
    if config.data.augment is not None:
        yield (
            "data.augment is for tasks with labels: student and teacher see one crop, mirrored or not; leave "
            "it out (null) for task=distill"
        )
    try:
        student_stage(config.model, options_of(config, DistillOptions))
    except ModelError as error:
        yield str(error)


SPEC = TaskSpec(
    name="distill",
    options=DistillOptions,
    build=deferred(f"{HERE}.task:DistillTask"),
    model_on_meta=deferred(f"{HERE}.shapes:model_on_meta"),
    backbone=deferred("launcher.tasks.encoder:encoder_of"),
    train_data=deferred(f"{IMAGES}:train_images"),
    eval_data=deferred(f"{IMAGES}:eval_perhaps_labelled_images"),
    check=_check,
    check_files=deferred(f"{HERE}.shapes:check_files"),
    paths=TEACHER_PATHS,
    on_change=MAY_MOVE,
    planning=Planning(
        members=deferred(f"{IMAGES}:image_members"),
        inputs=deferred(f"{IMAGES}:image_inputs"),
        step=deferred(f"{HERE}.shapes:step"),
        heads=deferred(f"{HERE}.shapes:heads"),
        teacher=PlannedTeacher(
            deferred(f"{HERE}.shapes:teacher_on_meta"), is_average=False, is_student=False
        ),
    ),
    parameters=ParameterRules(backbone="encoder.", heads=("projector.",)),
    takes_lr_net=True,
    predicting=Predicting(
        data=deferred(f"{IMAGES}:eval_images"),
        columns=deferred(f"{HERE}.answers:columns"),
        answers=deferred(f"{HERE}.answers:answers"),
    ),
)
