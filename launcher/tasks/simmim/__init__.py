"""Masked image modeling: SimMIM (Xie et al. 2022, arXiv:2111.09886)."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.image_data import eval_images, image_inputs, image_members, train_images
from launcher.tasks.param_groups import ParameterRules
from launcher.tasks.spec import HeadPart, Planning, StepOutput, Task, TaskContext, TaskSpec
from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.backbone import Backbone
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.heads.simmim_config import SimMIMConfig
from swin_moe.sizes import as_text


def _build(config: RunConfig, context: TaskContext) -> Task:
    from launcher.tasks.simmim.task import SimMIMTask

    return SimMIMTask(config, context)


def _model_on_meta(config: RunConfig, placement: ExpertParallel | None) -> nn.Module:
    from swin_moe.heads.simmim import SimMIM

    options = options_of(config, SimMIMConfig)
    return construct_on_meta(lambda model, experts: SimMIM(model, options, experts), config.model, placement)


def _backbone(model: nn.Module) -> Backbone:
    """The encoder."""
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Backbone)
    return encoder


def _step(config: RunConfig, model: nn.Module, inputs: Tensor, keys: Tensor) -> StepOutput:
    from launcher.tasks.simmim.task import step

    return step(model, inputs, keys)


def _heads(config: RunConfig, swin: Backbone) -> Sequence[HeadPart]:
    """A linear layer to the pixels of a token of the last map."""
    model, last = config.model, len(config.model.depths) - 1
    pixels = model.in_chans * (model.patch_size * 2**last) ** 2
    layer = nn.Conv2d(model.stage_dim(last), pixels, kernel_size=1)

    def run(maps: list[Tensor]) -> Tensor:
        decoded: Tensor = layer(swin.norm(maps[-1]).permute(0, 3, 1, 2))
        return decoded

    return [HeadPart("decoder", nn.ModuleList([swin.norm, layer]), run)]


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
    build=_build,
    model_on_meta=_model_on_meta,
    backbone=_backbone,
    train_data=train_images,
    eval_data=eval_images,
    check=_check,
    planning=Planning(members=image_members, inputs=image_inputs, step=_step, heads=_heads),
    parameters=ParameterRules(
        backbone="encoder.", heads=("decoder.", "mask_token"), first_layer=("mask_token",)
    ),
)
