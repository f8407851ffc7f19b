"""Logit distillation: a classifier learns a frozen teacher's probabilities (Hinton et al. 2015).

The student is the classifier of task=classification, with its data, its augmentation and its metric. Its
parts are imported when they are called, as they need torch.
"""

from dataclasses import replace

from launcher.tasks.classification import SPEC as CLASSIFICATION
from launcher.tasks.distill_logits.options import LogitOptions
from launcher.tasks.spec import PlannedTeacher, Planning
from launcher.tasks.teacher_rules import MAY_MOVE, TEACHER_PATHS
from parallel.lazy_exports import deferred

HERE = "launcher.tasks.distill_logits"
CLASSES = "launcher.tasks.classification.shapes"

SPEC = replace(
    CLASSIFICATION,
    name="distill_logits",
    options=LogitOptions,
    build=deferred(f"{HERE}.task:LogitTask"),
    check_files=deferred(f"{HERE}.shapes:check_files"),
    check_data=deferred(f"{HERE}.shapes:check_data"),
    paths=TEACHER_PATHS,
    on_change={**MAY_MOVE, "temperature": "training", "hard_weight": "training"},
    planning=Planning(
        members=deferred(f"{CLASSES}:members"),
        inputs=deferred(f"{CLASSES}:inputs"),
        step=deferred(f"{HERE}.shapes:step"),
        teacher=PlannedTeacher(
            deferred(f"{HERE}.shapes:teacher_on_meta"), is_average=False, is_student=False
        ),
    ),
)
