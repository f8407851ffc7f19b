"""The model of shapes alone, and what the planner needs of it."""

from collections.abc import Sequence

from torch import Tensor, nn

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.simmim import task
from launcher.tasks.spec import HeadPart, StepOutput
from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.backbone import Backbone
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.heads.simmim import SimMIM
from swin_moe.heads.simmim_config import SimMIMConfig


def model_on_meta(config: RunConfig, placement: ExpertParallel | None) -> nn.Module:
    """The encoder with its decoder."""
    options = options_of(config, SimMIMConfig)
    return construct_on_meta(lambda model, experts: SimMIM(model, options, experts), config.model, placement)


def step(config: RunConfig, model: nn.Module, inputs: Tensor, keys: Tensor) -> StepOutput:
    """Mean absolute error of the masked pixels."""
    return task.step(model, inputs, keys)


def heads(config: RunConfig, swin: Backbone) -> Sequence[HeadPart]:
    """A linear layer to the pixels of a token of the last map."""
    model, last = config.model, len(config.model.depths) - 1
    pixels = model.in_chans * (model.patch_size * 2**last) ** 2
    layer = nn.Conv2d(model.stage_dim(last), pixels, kernel_size=1)

    def run(maps: list[Tensor]) -> Tensor:
        decoded: Tensor = layer(swin.norm(maps[-1]).permute(0, 3, 1, 2))
        return decoded

    return [HeadPart("decoder", nn.ModuleList([swin.norm, layer]), run)]
