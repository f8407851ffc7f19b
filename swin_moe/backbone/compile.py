"""Compilation by pairs of blocks: a whole model takes many minutes, and gains nothing over its blocks."""

import inspect
from typing import Any

import torch
import torch._dynamo
from torch import nn

from swin_moe.backbone.block import SwinBlock, run_mixer
from swin_moe.backbone.model import PAIR, Stage, run_blocks
from swin_moe.moe.layer import MoELayer

GRAPHS_PER_STAGE = 8  # training and evaluation of a few image sizes and batches, of pairs and single blocks


def compile_blocks(model: nn.Module) -> None:
    """Let torch.compile take the blocks at their first call, in place; names and weights stay as they are.

    Dense blocks are taken two at a time, a plain and a shifted one: pairs of a stage differ in their tensors
    alone and share their graph. Of a block with experts only the attention is compiled: its rows are counted
    on the device, and the host would compile again for every new count.
    """
    stages = [module for module in model.modules() if isinstance(module, Stage)]
    options = _own_graphs(len(stages))
    for stage in stages:
        stage.run_blocks = torch.compile(run_blocks, dynamic=False, **options)
        stage.together = PAIR
        mixer = torch.compile(run_mixer, dynamic=False, **options)
        for block in stage.blocks:
            if isinstance(block, SwinBlock) and isinstance(block.mlp, MoELayer):
                block.run_mixer = mixer


def _own_graphs(stages: int) -> dict[str, Any]:
    """Options that let each of `stages` stages keep its own graphs, although all share one function.

    By default one function has at most eight graphs. `isolate_recompiles` came after torch 2.11; before it,
    the limit is raised to what all stages need.
    """
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        return {"isolate_recompiles": True}
    dynamo, needed = torch._dynamo.config, GRAPHS_PER_STAGE * stages
    dynamo.recompile_limit = max(dynamo.recompile_limit, needed)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, needed)
    return {}
