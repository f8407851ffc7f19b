"""Compilation block by block: a whole model takes many minutes, and gains nothing over its blocks."""

import inspect

import torch
import torch._dynamo
from torch import nn

from swin_moe.block import SwinBlock
from swin_moe.moe import MoELayer

GRAPHS_PER_BLOCK = 3  # training, evaluation, and one further image size


def compile_blocks(model: nn.Module) -> None:
    """Let torch.compile take every block at its first call, in place; names and weights stay as they are.

    Of a block with experts only the attention is compiled: the tokens of each expert are counted on the host,
    and every new count would be compiled again.
    """
    blocks = [module for module in model.modules() if isinstance(module, SwinBlock)]
    options = _own_graphs(len(blocks))
    for block in blocks:
        target = block.attention if isinstance(block.mlp, MoELayer) else block
        target.compile(dynamic=False, **options)


def _own_graphs(blocks: int) -> dict[str, bool]:
    """Options that let each of `blocks` blocks keep its own graphs, although all share one forward function.

    By default one function has at most eight graphs. `isolate_recompiles` came after torch 2.11; before it,
    the limit is raised to what all blocks need.
    """
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        return {"isolate_recompiles": True}
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS_PER_BLOCK * blocks)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, GRAPHS_PER_BLOCK * blocks)
    return {}
