"""A teacher that has not the student's backbone, on shapes alone: its forward pass and nothing else.

Legend: B images of h x w pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Device
from launcher.plan.base.shapes import on_shapes, placed
from launcher.plan.base.trace import Trace, trace
from launcher.plan.memory.balanced_moe import balance_experts
from launcher.tasks.registry import planning_of
from parallel.zero.dtypes import DTYPES


def separate_teacher(config: RunConfig) -> nn.Module | None:
    """The teacher of a run on the meta device, in the precision of the run and its experts under even load.

    None without one of this kind.
    """
    teacher = planning_of(config).teacher
    if teacher is None or teacher.is_student:
        return None
    module = teacher.model_on_meta(config, None).eval()
    balance_experts(module)
    return module.to(DTYPES[config.train.precision])


def forward_of(config: RunConfig, module: nn.Module) -> Callable[[int], Tensor]:
    """A function that gives a teacher so many images (B, 3, h, w); within `on_shapes`."""
    shape = config.model.in_chans, *config.model.image_sides

    def run(images: int) -> Tensor:
        with torch.no_grad():
            output: Tensor = module(torch.empty(images, *shape))
        return output

    return run


def teacher_trace(config: RunConfig, device: Device) -> Trace | None:
    """What such a teacher computes, by images of one view of a sample."""
    module = separate_teacher(config)
    if module is None:
        return None
    with on_shapes(device):
        module = placed(module, device)
        run = forward_of(config, module)
        run(1)  # in evaluation a position bias is computed once and kept
        return trace(module, run)
