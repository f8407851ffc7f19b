"""The Swin Transformer, dense or with experts, as one composition.

Legend: B images, H x W tokens, C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.expert import ExpertParallel
from parallel.mesh import Mesh
from swin_moe.attention import WindowAttention
from swin_moe.block import MLP, SwinBlock
from swin_moe.config import ModelConfig
from swin_moe.initialize import initialize
from swin_moe.moe import MoELayer, MoEStats
from swin_moe.patch import PatchEmbed, PatchMerging
from swin_moe.randomness import Dropout, SiteCounter


class ModelOutput(NamedTuple):
    """Logits (B, num_classes), and the statistics of every MoE layer in order, by the layer's name.

    A tuple, because DeepSpeed hooks its backward to the tensors that it finds in tuples, lists and dicts; an
    output that it cannot look into trains with wrong gradients under accumulation.
    """

    logits: Tensor
    moe: dict[str, MoEStats]

    @property
    def aux_loss(self) -> Tensor:
        """The weighted balance losses of all layers, summed: scalar."""
        return sum(
            (stats.loss for stats in self.moe.values()), self.logits.new_zeros((), dtype=torch.float32)
        )


class Stage(nn.Module):
    """Blocks at one resolution, plain and shifted windows in turn; merging halves the map before them."""

    def __init__(
        self,
        config: ModelConfig,
        stage: int,
        drop_path: list[float],
        placement: ExpertParallel | None,
        sites: SiteCounter,
    ) -> None:
        super().__init__()
        self.merge = PatchMerging(config.stage_dim(stage - 1)) if stage else None
        self.blocks = nn.ModuleList(
            _block(config, stage, i, drop_path[i], placement, sites) for i in range(config.depths[stage])
        )

    def forward(self, x: Tensor, keys: Tensor) -> tuple[Tensor, dict[str, MoEStats]]:
        """(B, H, W, C) with keys (B,) -> this stage's map, and the statistics by block number."""
        statistics = {}
        x = x if self.merge is None else self.merge(x)
        for i, block in enumerate(self.blocks):
            x, stats = block(x, keys)
            if stats is not None:
                statistics[str(i)] = stats
        return x, statistics


def _block(
    config: ModelConfig,
    stage: int,
    index: int,
    drop_path: float,
    placement: ExpertParallel | None,
    sites: SiteCounter,
) -> SwinBlock:
    dim, window, resolution = (
        config.stage_dim(stage),
        config.stage_window(stage),
        config.stage_resolution(stage),
    )
    hidden = int(dim * config.mlp_ratio)
    attention = WindowAttention(
        dim,
        config.num_heads[stage],
        window,
        position_bias=config.position_bias,
        qkv_bias=config.qkv_bias,
    )
    ffn: MLP | MoELayer
    if config.is_moe_block(stage, index):
        assert config.moe is not None
        assert placement is not None
        ffn = MoELayer(dim, hidden, config.moe, placement, fc2_bias=config.mlp_fc2_bias, sites=sites)
    else:
        ffn = MLP(dim, hidden, dropout=config.drop_rate, fc2_bias=config.mlp_fc2_bias, sites=sites)
    return SwinBlock(
        dim,
        attention,
        ffn,
        resolution=resolution,
        window=window,
        shift=window // 2 if index % 2 and resolution > window else 0,
        drop_path=drop_path,
        dropout=config.drop_rate,
        sites=sites,
    )


class SwinTransformer(nn.Module):
    """A classifier over a pyramid of stages (Liu et al. 2021, figure 3).

    Args:
        config: what to build.
        placement: where the experts are; needed when the model has any.
    """

    def __init__(self, config: ModelConfig, placement: ExpertParallel | None = None) -> None:
        super().__init__()
        self.config = config
        sites = SiteCounter()
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        starts = [sum(config.depths[:i]) for i in range(len(config.depths))]
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, config.embed_dim)
        self.dropout = Dropout(config.drop_rate, sites.next())
        self.layers = nn.ModuleList(
            Stage(config, i, rates[start : start + config.depths[i]], placement, sites)
            for i, start in enumerate(starts)
        )
        width = config.stage_dim(len(config.depths) - 1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.num_classes)

    def forward(self, images: Tensor, keys: Tensor | None = None) -> ModelOutput:
        """Classify images.

        Args:
            images: (B, in_chans, image_size, image_size), normalised.
            keys: (B,) int64 of `randomness.sample_keys`; the source of every draw. Without them a training
                model draws keys from torch's global generator.
        """
        if keys is None:
            keys = torch.zeros(len(images), dtype=torch.int64, device=images.device)
            if self.training:
                keys.random_()
        x = self.dropout(self.patch_embed(images), keys)
        statistics: dict[str, MoEStats] = {}
        for i, stage in enumerate(self.layers):
            x, blocks = stage(x, keys)
            statistics |= {f"layers.{i}.blocks.{block}": stats for block, stats in blocks.items()}
        logits = self.head(self.norm(x).mean(dim=(1, 2)))
        return ModelOutput(logits=logits, moe=statistics)


def build_model(config: ModelConfig, *, seed: int = 0, mesh: Mesh | None = None) -> SwinTransformer:
    """A model with initial weights that depend on (config, seed) alone.

    Args:
        config: what to build.
        seed: of the weights; every parameter, and every expert, draws from its own generator.
        mesh: the layout; without one all experts are here and no process group is needed.

    Raises:
        LayoutError: the experts do not divide over the mesh.
    """
    placement = None
    if config.moe is not None:
        experts = config.moe.num_experts
        placement = ExpertParallel.over(mesh, experts) if mesh else ExpertParallel.on_one_rank(experts)
    model = SwinTransformer(config, placement)
    initialize(model, seed=seed, std=config.init_std)
    return model
