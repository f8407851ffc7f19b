"""The models of shapes alone, and what the planner needs of them.

Legend: B samples, C channels of the last map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.image_data import image_inputs
from launcher.tasks.moby import task
from launcher.tasks.moby.options import VIEWS, MoBYOptions
from launcher.tasks.spec import HeadPart, StepOutput
from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.backbone import Backbone
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.backbone.group_batch_norm import in_one_group
from swin_moe.heads.moby import MLPHead, MoBY, MoBYTarget


def model_on_meta(config: RunConfig, placement: ExpertParallel | None) -> nn.Module:
    """The online network."""
    head = options_of(config, MoBYOptions).head
    return construct_on_meta(lambda model, experts: MoBY(model, head, experts), config.model, placement)


def target_on_meta(config: RunConfig, placement: ExpertParallel | None) -> nn.Module:
    """The target network."""
    head = options_of(config, MoBYOptions).head
    return construct_on_meta(lambda model, experts: MoBYTarget(model, head, experts), config.model, placement)


def members(config: RunConfig, samples: int) -> dict[str, Tensor]:
    """Two views of each sample."""
    model = config.model
    views = torch.empty(samples, VIEWS, model.in_chans, *model.image_sides, dtype=torch.uint8)
    return {"image": views}


def inputs(config: RunConfig, tensors: dict[str, Tensor]) -> task.TrainInputs:
    """The views on the device, and the positions of the samples."""
    views = tuple(image_inputs(config, {"image": one}) for one in tensors["image"].unbind(1))
    return task.TrainInputs(views, torch.empty(len(views[0]), dtype=torch.int64))


def step(config: RunConfig, model: nn.Module, inputs: task.TrainInputs, keys: Tensor) -> StepOutput:
    """The loss of a micro-batch; batch norms take what one rank holds for a group."""
    in_one_group(model, len(keys))
    options = options_of(config, MoBYOptions)
    targets, queues = (
        torch.empty(VIEWS, count, options.head.out_dim) for count in (len(keys), options.queue)
    )
    return task.online_step(options, model, inputs.views, keys, targets, queues)


def heads(config: RunConfig, swin: Backbone) -> Sequence[HeadPart]:
    """The last norm, the projector and the predictor."""
    head = options_of(config, MoBYOptions).head
    layers = nn.Sequential(MLPHead(swin.channels[-1], head), MLPHead(head.out_dim, head))

    def run(maps: list[Tensor]) -> Tensor:
        in_one_group(layers, len(maps[-1]))
        predictions: Tensor = layers(swin.norm(maps[-1]).mean(dim=(1, 2)))
        return predictions

    return [HeadPart("projector and predictor", nn.ModuleList([swin.norm, layers]), run)]
