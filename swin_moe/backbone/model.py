"""The Swin Transformer, dense or with experts, as one composition.

Legend: B images, H x W tokens, C channels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parallel.experts.exchange import ExchangeOptions
from parallel.experts.placement import ExpertParallel, copy_mark
from parallel.ranks.mesh import Mesh
from parallel.zero.init import partitioned
from swin_moe.backbone.attention import CosineAttention, SpatialMLP, WindowAttention
from swin_moe.backbone.block import SwinBlock
from swin_moe.backbone.initialize import initialize
from swin_moe.backbone.patch import PatchEmbed, PatchMerging
from swin_moe.backbone.position_bias import LogCpbBias, PositionBias, TableBias
from swin_moe.backbone.windows import WindowGrid
from swin_moe.config import ModelConfig, require
from swin_moe.moe.layer import MoECall, MoELayer, MoEStats
from swin_moe.moe.mlp import MLP
from swin_moe.moe.routers.registry import SigmoidTopKRouter
from swin_moe.random.keyed import Dropout, SiteCounter, branch_scales

M = TypeVar("M", bound=nn.Module)
PAIR = 2  # blocks, a plain and a shifted one: what repeats in a stage


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
        return total_loss(self.moe, self.logits.device)


def total_loss(moe: Mapping[str, MoEStats], device: torch.device) -> Tensor:
    """The weighted balance losses of MoE layers, summed: scalar, fp32."""
    return sum((stats.loss for stats in moe.values()), torch.zeros((), device=device))


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
        self.activation_checkpoint_every = config.activation_checkpoint_every
        self.run_blocks, self.together = run_blocks, 1  # see compile.py
        post_norm = config.norm == "post"
        self.merge = PatchMerging(config.stage_dim(stage - 1), post_norm=post_norm) if stage else None
        self.blocks = nn.ModuleList(
            _block(config, stage, i, drop_path[i], placement, sites) for i in range(config.depths[stage])
        )

    def forward(
        self, x: Tensor, keys: Tensor, call: MoECall | None = None, scales: Tensor | None = None
    ) -> tuple[Tensor, dict[str, MoEStats]]:
        """Run the blocks.

        Args:
            x: (B, H, W, C).
            keys: (B,) of the images.
            call: what the MoE layers do otherwise than configured.
            scales: (2 * blocks, B) of `branch_scales`, or None: every block then draws its own.

        Returns:
            This stage's map, and the statistics by block number.
        """
        statistics: dict[str, MoEStats] = {}
        x = x if self.merge is None else self.merge(x)
        step = self.activation_checkpoint_every or len(self.blocks)
        for first in range(0, len(self.blocks), step):
            if self.activation_checkpoint_every and torch.is_grad_enabled():
                # no generator state to keep: every draw is keyed
                x, found = checkpoint(
                    self._run,
                    x,
                    keys,
                    call,
                    scales,
                    first,
                    step,
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                x, found = self._run(x, keys, call, scales, first, step)
            statistics |= found
        return x, statistics

    def _run(
        self, x: Tensor, keys: Tensor, call: MoECall | None, scales: Tensor | None, first: int, count: int
    ) -> tuple[Tensor, dict[str, MoEStats]]:
        """Blocks first .. first + count - 1."""
        statistics: dict[str, MoEStats] = {}
        for group in self._groups(range(first, min(first + count, len(self.blocks)))):
            blocks = [self.blocks[i] for i in group]
            own = None if scales is None else scales[2 * group.start : 2 * group.stop]
            run = run_blocks if _has_experts(blocks[0]) else self.run_blocks
            x, found = run(blocks, x, keys, call, own)
            statistics |= {str(i): stats for i, stats in zip(group, found, strict=True) if stats is not None}
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


def run_blocks(
    blocks: Sequence[nn.Module], x: Tensor, keys: Tensor, call: MoECall | None, scales: Tensor | None
) -> tuple[Tensor, list[MoEStats | None]]:
    """Run blocks one after the other; what is compiled. Scales are (2 * blocks, B), or None."""
    statistics = []
    for i, block in enumerate(blocks):
        x, stats = block(x, keys, call, None if scales is None else scales[2 * i : 2 * i + 2])
        statistics.append(stats)
    return x, statistics


def _has_experts(block: nn.Module) -> bool:
    return isinstance(block.mlp, MoELayer)


def _mixer(config: ModelConfig, stage: int) -> nn.Module:
    """What mixes the tokens of a stage's windows."""
    dim, heads, window = config.stage_dim(stage), config.num_heads[stage], config.stage_window(stage)
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


def _block(
    config: ModelConfig,
    stage: int,
    index: int,
    drop_path: float,
    placement: ExpertParallel | None,
    sites: SiteCounter,
) -> SwinBlock:
    dim, every = config.stage_dim(stage), config.extra_norm_period
    hidden = int(dim * config.mlp_ratio)
    ffn: MLP | MoELayer
    if config.is_moe_block(stage, index):
        assert config.moe is not None
        assert placement is not None
        ffn = MoELayer(dim, hidden, config.moe, placement, fc2_bias=config.mlp_fc2_bias, sites=sites)
    else:
        ffn = MLP(dim, hidden, dropout=config.drop_rate, fc2_bias=config.mlp_fc2_bias, sites=sites)
    return SwinBlock(
        dim,
        _mixer(config, stage),
        ffn,
        grid=WindowGrid(
            window=config.stage_window(stage), shifted=index % 2 == 1, cyclic=config.attention != "mlp"
        ),
        resolution=config.stage_resolution(stage),
        norm=config.norm,
        main_norm=every > 0 and (index + 1) % every == 0,
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

    def forward(self, images: Tensor, keys: Tensor | None = None, call: MoECall | None = None) -> ModelOutput:
        """Classify images.

        Args:
            images: (B, in_chans, h, w) of any size, normalised.
            keys: (B,) int64 of `randomness.sample_keys`; the source of every draw. Without them a training
                model draws keys from torch's global generator.
            call: what the MoE layers do otherwise than configured in this pass: top_k, capacity, exchange.
        """
        features, statistics = self.forward_pooled(images, keys, call)
        return ModelOutput(logits=self.head(features), moe=statistics)

    def forward_pooled(
        self, images: Tensor, keys: Tensor | None = None, call: MoECall | None = None
    ) -> tuple[Tensor, dict[str, MoEStats]]:
        """What the head sees: (B, C of the last stage), and the statistics of every MoE layer."""
        maps, statistics = self._stages(images, keys, call=call)
        return self.norm(maps[-1]).mean(dim=(1, 2)), statistics

    def forward_masked(
        self, images: Tensor, keys: Tensor, mask: Tensor, mask_token: Tensor, call: MoECall | None = None
    ) -> tuple[Tensor, dict[str, MoEStats]]:
        """The last map, normalised, of images whose masked patches are hidden (SimMIM, see simmim.py).

        Args:
            images: (B, in_chans, h, w).
            keys: (B,).
            mask: (B, ceil(h / p), ceil(w / p)) bool, True where `mask_token` replaces the patch's embedding.
            mask_token: (C,).
            call: as in forward.

        Returns:
            (B, h / s, w / s, C of the last stage), and the statistics of every MoE layer.
        """
        maps, statistics = self._stages(images, keys, mask, mask_token, call)
        return self.norm(maps[-1]), statistics

    def forward_features(self, images: Tensor, keys: Tensor | None = None) -> list[Tensor]:
        """The map of each stage, for dense tasks: (B, h / s, w / s, C), s = 4, 8, 16, 32, rounded up."""
        return self._stages(images, keys)[0]

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        before = dict(self.named_parameters())
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():  # from meta to a device they are new, without marks
            copy_mark(before[name], parameter)
        return self

    @torch.no_grad()
    def balance(self, loads: Mapping[str, Tensor]) -> None:
        """Move the bias of every router that balances by one: once an optimizer step, after its update.

        Args:
            loads: (E,) choices that wanted each expert in the whole step, all ranks, by the layer's name.
        """
        for layer, load in loads.items():
            router = self.get_submodule(f"{layer}.mlp.router")
            frozen = not any(parameter.requires_grad for parameter in router.parameters())
            if isinstance(router, SigmoidTopKRouter) and not frozen:
                router.balance(load)

    def _stages(
        self,
        images: Tensor,
        keys: Tensor | None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        call: MoECall | None = None,
    ) -> tuple[list[Tensor], dict[str, MoEStats]]:
        if keys is None:
            keys = torch.zeros(len(images), dtype=torch.int64, device=images.device)
            if self.training:
                keys = torch.randint_like(keys, 2**63 - 1)  # not random_, which breaks a compiled graph
        x = self.patch_embed(images)
        if mask is not None:
            assert mask_token is not None
            x = torch.where(mask[..., None], mask_token.to(x.dtype), x)
        x = self.dropout(x, keys)
        blocks = [module for module in self.layers.modules() if isinstance(module, SwinBlock)]
        drop_paths = [drop_path for block in blocks for drop_path in block.drop_paths]
        scales = branch_scales(drop_paths, keys, x.dtype)  # in one go for all blocks
        by_stage = (
            [None] * len(self.layers)
            if scales is None
            else scales.split([2 * depth for depth in self.config.depths])
        )
        maps: list[Tensor] = []
        statistics: dict[str, MoEStats] = {}
        for i, (stage, own) in enumerate(zip(self.layers, by_stage, strict=True)):
            x, found = stage(x, keys, call, own)
            maps.append(x)
            statistics |= {f"layers.{i}.blocks.{block}": stats for block, stats in found.items()}
        return maps, statistics


def build_model(
    config: ModelConfig,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    sharded: bool = False,
    exchange: ExchangeOptions | None = None,
) -> SwinTransformer:
    """A model with initial weights that depend on (config, seed) alone.

    Args:
        config: what to build.
        seed: of the weights; every parameter, and every expert, draws from its own generator.
        mesh: the layout; without one all experts are here and no process group is needed.
        sharded: cut every parameter over its holders as it is made (deepspeed.zero.Init), for a model that
            no rank can hold whole and ZeRO stage 3; every rank calls it together.
        exchange: how tokens and experts come together on the mesh.

    Raises:
        LayoutError: the experts do not divide over the mesh.
        ModelError: a sharded model without a mesh.
    """
    return construct(
        SwinTransformer, config, seed=seed, mesh=mesh, sharded=sharded, exchange=exchange or ExchangeOptions()
    )


def construct(
    make: Callable[[ModelConfig, ExpertParallel | None], M],
    config: ModelConfig,
    *,
    seed: int,
    mesh: Mesh | None,
    sharded: bool,
    exchange: ExchangeOptions,
) -> M:
    """Make a module around the model of `config`, place its experts and fill it; see `build_model`."""
    require(mesh is not None or not sharded, "a sharded model needs a mesh: the ranks to cut it over")
    placement = None
    if config.moe is not None:
        experts = config.moe.num_experts
        placement = (
            ExpertParallel.over(mesh, experts, exchange) if mesh else ExpertParallel.on_one_rank(experts)
        )
    model = (
        partitioned(lambda: make(config, placement), mesh) if sharded and mesh else make(config, placement)
    )
    initialize(model, seed=seed, std=config.init_std, zero_branch_norms=config.norm == "post")
    return model
