"""Compilation block by block: a whole model takes many minutes, and gains nothing over its blocks."""

from torch import nn

from swin_moe.block import SwinBlock
from swin_moe.moe import MoELayer


def compile_blocks(model: nn.Module) -> None:
    """Let torch.compile take every block at its first call, in place; names and weights stay as they are.

    Of a block with experts only the attention is compiled: the tokens of each expert are counted on the host,
    and every new count would be compiled again.
    """
    for module in model.modules():
        if isinstance(module, SwinBlock):
            target = module.attention if isinstance(module.mlp, MoELayer) else module
            # Isolated, because all blocks share one forward, and eight graphs are the limit for one function.
            target.compile(dynamic=False, isolate_recompiles=True)
