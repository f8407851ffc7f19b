"""A stage: blocks at one resolution, the recomputation of their activations, and their compilation.

Legend: B images or clips, (H, W) or (D, H, W) sides of a map in tokens, C channels.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parallel.experts.placement import ExpertParallel
from swin_moe.backbone.attention import CosineAttention, SpatialMLP, WindowAttention
from swin_moe.backbone.block import BlockOptions, SwinBlock, run_mixer
from swin_moe.backbone.patch import PatchMerging
from swin_moe.backbone.position_bias import LogCpbBias, PositionBias, TableBias
from swin_moe.backbone.relation_layer import aggregation
from swin_moe.backbone.whole_map import MapMixer, WholeMap
from swin_moe.backbone.window_masks import WindowMasks
from swin_moe.backbone.windows import WindowGrid
from swin_moe.config import ModelConfig
from swin_moe.moe.experts import MLP
from swin_moe.moe.layer import MoELayer, MoEStats
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import SiteCounter

PAIR = 2  # blocks, a plain and a shifted one: what repeats in a stage
GRAPHS_PER_STAGE = 8  # training and evaluation of a few image sizes and batches, of pairs and single blocks


class Stage(nn.Module):
    """Blocks at one resolution; merging halves the map before them.

    Args:
        blocks: called with a map, keys, RoutingOverrides and scales, see `SwinBlock`.
        merge: what makes their map of that of the stage before.
        activation_checkpoint_every: blocks whose activations are recomputed at a time; 0: none.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        merge: nn.Module | None = None,
        activation_checkpoint_every: int = 0,
    ) -> None:
        super().__init__()
        self.activation_checkpoint_every = activation_checkpoint_every
        self.run_blocks, self.together = run_blocks, 1  # compile_blocks replaces both
        self.merge = merge
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, x: Tensor, keys: Tensor, call: RoutingOverrides | None = None, scales: Tensor | None = None
    ) -> tuple[Tensor, dict[str, MoEStats]]:
        """Run the blocks; backward recomputes the activations of `activation_checkpoint_every` at a time.

        Args:
            x: (B, *sides, C).
            keys: (B,) of the images or clips.
            call: what this pass changes of the MoE layers' configuration.
            scales: (2 * blocks, B) of `branch_scales`, or None: every block then draws its own.

        Returns:
            This stage's map, and the statistics by block number.
        """
        statistics: dict[str, MoEStats] = {}
        x = x if self.merge is None else self.merge(x)
        step = self.activation_checkpoint_every or len(self.blocks)
        for first in range(0, len(self.blocks), step):
            arguments = (x, keys, call, scales, first, step)
            if self.activation_checkpoint_every and torch.is_grad_enabled():
                # every draw is keyed: there is no generator state to restore
                x, stats = checkpoint(self._run, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x, stats = self._run(*arguments)
            statistics |= stats
        return x, statistics

    def _run(
        self,
        x: Tensor,
        keys: Tensor,
        call: RoutingOverrides | None,
        scales: Tensor | None,
        first: int,
        count: int,
    ) -> tuple[Tensor, dict[str, MoEStats]]:
        """Run the blocks first .. first + count - 1."""
        statistics: dict[str, MoEStats] = {}
        for group in self._groups(range(first, min(first + count, len(self.blocks)))):
            blocks = [self.blocks[i] for i in group]
            own = None if scales is None else scales[2 * group.start : 2 * group.stop]
            run = run_blocks if _has_experts(blocks[0]) else self.run_blocks
            x, by_block = run(blocks, x, keys, call, own)
            statistics |= {
                str(i): stats for i, stats in zip(group, by_block, strict=True) if stats is not None
            }
        return x, statistics

    def _groups(self, numbers: range) -> Iterator[range]:
        """The blocks that run as one: `together` dense ones, or one with experts."""
        start = numbers.start
        while start < numbers.stop:
            stop = start + 1
            while stop < min(start + self.together, numbers.stop) and not (
                _has_experts(self.blocks[start]) or _has_experts(self.blocks[stop])
            ):
                stop += 1
            yield range(start, stop)
            start = stop


def swin_stage(
    config: ModelConfig,
    stage: int,
    drop_path: list[float],
    placement: ExpertParallel | None,
    sites: SiteCounter,
) -> Stage:
    """The blocks of a Swin, plain and shifted windows in turn.

    Args:
        config: of the model.
        stage: number of the stage.
        drop_path: rate of each block.
        placement: where the experts are; needed when the stage has any.
        sites: numbers for the places that draw random numbers.
    """
    post_norm = config.norm == "post"
    period = config.extra_norm_period
    masks = [WindowMasks(_grid(config, stage, shifted=shifted)) for shifted in (False, True)]
    blocks = []
    for i in range(config.depths[stage]):
        options = BlockOptions(
            dim=config.stage_dim(stage),
            masks=masks[i % 2],
            resolution=config.stage_resolution(stage),
            post_norm=post_norm,
            main_norm=period > 0 and (i + 1) % period == 0,
            drop_path=drop_path[i],
            dropout=config.drop_rate,
        )
        ffn = _ffn(config, stage, i, placement, sites)
        blocks.append(SwinBlock(options, _mixer(config, stage), ffn, sites=sites))
    merge = PatchMerging(config.stage_dim(stage - 1), post_norm=post_norm) if stage else None
    return Stage(blocks, merge=merge, activation_checkpoint_every=config.activation_checkpoint_every)


def run_blocks(
    blocks: Sequence[nn.Module],
    x: Tensor,
    keys: Tensor,
    call: RoutingOverrides | None,
    scales: Tensor | None,
) -> tuple[Tensor, list[MoEStats | None]]:
    """Run blocks one after the other, with scales (2 * blocks, B) or None. This is what is compiled."""
    statistics = []
    for i, block in enumerate(blocks):
        x, stats = block(x, keys, call, None if scales is None else scales[2 * i : 2 * i + 2])
        statistics.append(stats)
    return x, statistics


def compile_blocks(model: nn.Module) -> None:
    """Let torch.compile take the blocks at their first call, in place; names and weights stay as they are.

    A complete model would take many minutes to compile, and gains nothing over its blocks. Dense blocks are
    compiled two at a time, a plain and a shifted one: pairs of a stage differ in their tensors alone and
    share their graph. Of a block with experts only the attention is compiled: its rows are counted on the
    device, and the host would compile again for every new count.
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
    from torch._dynamo import config as dynamo  # takes half a second, which no other command needs

    needed = GRAPHS_PER_STAGE * stages
    dynamo.recompile_limit = max(dynamo.recompile_limit, needed)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, needed)
    return {}


def _has_experts(block: nn.Module) -> bool:
    return isinstance(block, SwinBlock) and isinstance(block.mlp, MoELayer)


def _grid(config: ModelConfig, stage: int, *, shifted: bool) -> WindowGrid:
    """How the plain or the shifted blocks of a stage cut their map."""
    if config.attention == "local_relation":
        return WholeMap()
    return WindowGrid(
        window=config.stage_window(stage),
        shifted=shifted,
        cyclic=config.attention != "mlp",
        padding=config.window_padding,
    )


def _ffn(
    config: ModelConfig, stage: int, block: int, placement: ExpertParallel | None, sites: SiteCounter
) -> MLP | MoELayer:
    """The MLP of a block, or its mixture of experts."""
    dim = config.stage_dim(stage)
    hidden = int(dim * config.mlp_ratio)
    if not config.is_moe_block(stage, block):
        return MLP(dim, hidden, dropout=config.drop_rate, fc2_bias=config.mlp_fc2_bias, sites=sites)
    assert config.moe is not None
    assert placement is not None
    return MoELayer(dim, hidden, config.moe, placement, fc2_bias=config.mlp_fc2_bias, sites=sites)


def _mixer(config: ModelConfig, stage: int) -> nn.Module:
    """What mixes the tokens of a stage's windows, or of its map."""
    dim = config.stage_dim(stage)
    if config.attention == "local_relation":
        return MapMixer(aggregation(dim, config.relation))
    heads, window = config.num_heads[stage], config.stage_window(stage)
    if config.attention == "mlp":
        return SpatialMLP(dim, heads, window)
    bias: PositionBias
    if config.position_bias == "table":
        bias = TableBias(window, heads)
    else:
        learned = config.pretrained_window(stage)
        bias = LogCpbBias(window, heads, sigmoid=config.attention == "cosine", pretrained_window=learned)
    attention = CosineAttention if config.attention == "cosine" else WindowAttention
    return attention(dim, heads, bias, qkv_bias=config.qkv_bias, attention_chunk=config.attention_chunk)
