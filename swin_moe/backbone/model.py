"""The Swin Transformer, dense or with experts, as one composition.

Legend: B images, H x W tokens, C channels.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from parallel.experts.exchange import ExchangeOptions
from parallel.experts.placement import ExpertParallel, copy_mark
from parallel.ranks.mesh import Mesh
from parallel.zero.init import partitioned
from swin_moe.backbone.block import SwinBlock
from swin_moe.backbone.initialize import initialize
from swin_moe.backbone.patch import PatchEmbed
from swin_moe.backbone.stage import Stage
from swin_moe.config import ModelConfig, require
from swin_moe.moe.layer import MoEStats, RoutingOverrides
from swin_moe.moe.routers.topk import SigmoidTopKRouter
from swin_moe.random.keyed import Dropout, SiteCounter, branch_scales

M = TypeVar("M", bound=nn.Module)


class ModelOutput(NamedTuple):
    """Logits (B, num_classes), and the statistics of every MoE layer in order, by the layer's name.

    A tuple, because DeepSpeed hooks its backward to the tensors that it finds in tuples, lists and dicts; an
    output that it cannot look into trains with wrong gradients under accumulation.
    """

    logits: Tensor
    moe: dict[str, MoEStats]

    @property
    def aux_loss(self) -> Tensor:
        """The weighted auxiliary losses of all layers, summed: scalar."""
        return total_loss(self.moe, self.logits.device)


def total_loss(moe: Mapping[str, MoEStats], device: torch.device) -> Tensor:
    """The weighted auxiliary losses of MoE layers, summed: scalar, fp32."""
    return sum((stats.loss for stats in moe.values()), torch.zeros((), device=device))


class Features(NamedTuple):
    """The map of each stage (B, h / s, w / s, C), rounded up, and the statistics of every MoE layer."""

    maps: list[Tensor]
    strides: tuple[int, ...]  # s in pixels
    moe: dict[str, MoEStats]

    @property
    def aux_loss(self) -> Tensor:
        """The weighted auxiliary losses of all layers, summed: scalar."""
        return total_loss(self.moe, self.maps[0].device)


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

    def forward(
        self, images: Tensor, keys: Tensor | None = None, call: RoutingOverrides | None = None
    ) -> ModelOutput:
        """Classify images.

        Args:
            images: (B, in_chans, h, w) of any size, normalised.
            keys: (B,) int64 of `random.keyed.sample_keys`; the source of every draw. Without them a training
                model draws keys from torch's global generator.
            call: what this pass changes of the MoE layers' configuration: top_k, capacity, exchange.
        """
        features, statistics = self.forward_pooled(images, keys, call)
        return ModelOutput(logits=self.head(features), moe=statistics)

    def forward_pooled(
        self, images: Tensor, keys: Tensor | None = None, call: RoutingOverrides | None = None
    ) -> tuple[Tensor, dict[str, MoEStats]]:
        """What the head sees: (B, C of the last stage), and the statistics of every MoE layer."""
        maps, statistics = self._stages(images, keys, call=call)
        return self.norm(maps[-1]).mean(dim=(1, 2)), statistics

    def forward_masked(
        self,
        images: Tensor,
        keys: Tensor,
        mask: Tensor,
        mask_token: Tensor,
        call: RoutingOverrides | None = None,
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

    def forward_features(
        self, images: Tensor, keys: Tensor | None = None, call: RoutingOverrides | None = None
    ) -> Features:
        """The map of each stage, for dense tasks; arguments as in forward.

        Add `aux_loss` of the result to the loss of a task, as the experts' balance depends on it.
        """
        maps, statistics = self._stages(images, keys, call=call)
        strides = tuple(self.config.patch_size * 2**stage for stage in range(len(maps)))
        return Features(maps=maps, strides=strides, moe=statistics)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        before = dict(self.named_parameters())
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():  # from meta to a device they are new, without marks
            copy_mark(before[name], parameter)
        return self

    @torch.no_grad()
    def update_router_bias(self, loads: Mapping[str, Tensor]) -> None:
        """Move the bias of every sigmoid router: once after each optimizer step.

        Args:
            loads: (E,) choices that wanted each expert in the step, of all ranks, by the layer's name.
        """
        for layer, load in loads.items():
            router = self.get_submodule(f"{layer}.mlp.router")
            frozen = not any(parameter.requires_grad for parameter in router.parameters())
            if isinstance(router, SigmoidTopKRouter) and not frozen:
                router.update_router_bias(load)

    def _stages(
        self,
        images: Tensor,
        keys: Tensor | None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        call: RoutingOverrides | None = None,
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
            x, by_block = stage(x, keys, call, own)
            maps.append(x)
            statistics |= {f"layers.{i}.blocks.{block}": stats for block, stats in by_block.items()}
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
        sharded: partition every parameter over its holders as it is made (deepspeed.zero.Init), for ZeRO
            stage 3 and a model that no rank can hold complete; every rank calls it together.
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
    require(mesh is not None or not sharded, "a sharded model needs a mesh: the ranks to partition it over")
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
