"""Masked image modeling: SimMIM (Xie et al. 2022, arXiv:2111.09886).

Its parts are imported when they are called, as they need torch.
"""

from collections.abc import Iterator, Sequence

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.parameter_rules import ParameterRules
from launcher.tasks.spec import Planning, Predicting, TaskSpec
from parallel.lazy_exports import deferred
from swin_moe.heads.simmim_config import SimMIMConfig
from swin_moe.sizes import as_text

HERE = "launcher.tasks.simmim"
IMAGES = "launcher.tasks.image_data"


def _check(config: RunConfig) -> Sequence[str]:
    return list(_errors(config, options_of(config, SimMIMConfig).mask_patch_size))


def _errors(config: RunConfig, side: int) -> Iterator[str]:
    model = config.model
    if config.data.augment is not None:
        yield "data.augment is for task=classification: leave it out (null) for task=simmim"
    if side % model.patch_size:
        yield f"model.patch_size ({model.patch_size}) must divide simmim.mask_patch_size ({side})"
    if side > min(model.image_sides):
        size = as_text(model.image_size)
        yield f"simmim.mask_patch_size ({side}) must be at most model.image_size ({size})"


SPEC = TaskSpec(
    name="simmim",
    options=SimMIMConfig,
    build=deferred(f"{HERE}.task:SimMIMTask"),
    model_on_meta=deferred(f"{HERE}.shapes:model_on_meta"),
    backbone=deferred("launcher.tasks.encoder:encoder_of"),
    train_data=deferred(f"{IMAGES}:train_images"),
    eval_data=deferred(f"{HERE}.data:eval_data"),
    check=_check,
    on_change={"eval_neighbours": "free"},
    planning=Planning(
        members=deferred(f"{IMAGES}:image_members"),
        inputs=deferred(f"{IMAGES}:image_inputs"),
        step=deferred(f"{HERE}.shapes:step"),
        heads=deferred(f"{HERE}.shapes:heads"),
    ),
    parameters=ParameterRules(
        backbone="encoder.", heads=("decoder.", "mask_token"), first_layer=("mask_token",)
    ),
    predicting=Predicting(
        data=deferred(f"{IMAGES}:eval_images"),
        columns=deferred(f"{HERE}.answers:columns"),
        answers=deferred(f"{HERE}.answers:answers"),
        pictures=deferred(f"{HERE}.answers:pictures"),
    ),
)
