"""The Swin Transformer before its head, dense or with experts: patches, stages of blocks, the last norm.

Legend: B images of h x w pixels or clips of d frames of them, s stride of a map in pixels, C channels of a
map. The map of an image has sides (h / s, w / s), that of a clip (d / t, h / s, w / s) with t frames a patch,
all rounded up.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.experts.placement import ExpertParallel, copy_mark
from swin_moe.backbone.block import SwinBlock
from swin_moe.backbone.lr_net import LRStem, lr_stage
from swin_moe.backbone.patch import PatchEmbed
from swin_moe.backbone.stage import swin_stage
from swin_moe.config import ModelConfig
from swin_moe.errors import require
from swin_moe.moe.layer import MoEStats
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.moe.routers.topk import SigmoidTopKRouter
from swin_moe.random.keyed import Dropout, SiteCounter, branch_scales


def total_loss(moe: Mapping[str, MoEStats], device: torch.device) -> Tensor:
    """The weighted auxiliary losses of MoE layers, summed: scalar, fp32."""
    return sum((stats.loss for stats in moe.values()), torch.zeros((), device=device))


class Features(NamedTuple):
    """The map of each stage (B, *sides, C), and the statistics of every MoE layer."""

    maps: list[Tensor]
    strides: tuple[int, ...]  # s in pixels
    moe: dict[str, MoEStats]

    @property
    def aux_loss(self) -> Tensor:
        """The weighted auxiliary losses of all layers, summed: scalar."""
        return total_loss(self.moe, self.maps[0].device)


class Backbone(nn.Module):
    """A pyramid of stages (Liu et al. 2021, figure 3). Heads stand on its maps; see swin_moe/heads.

    Args:
        config: what to build.
        placement: where the experts are; needed when the model has any.
        norm: whether there is a norm after the last stage, for a head that reads the last map alone. A head
            that reads several maps brings norms of its own, and this one would get no gradient.
    """

    def __init__(
        self, config: ModelConfig, placement: ExpertParallel | None = None, *, norm: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        sites = SiteCounter()
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        starts = [sum(config.depths[:i]) for i in range(len(config.depths))]
        self.patch_embed = (
            LRStem(config)
            if config.lr_net
            else PatchEmbed(config.patch_sides, config.in_chans, config.embed_dim)
        )
        self.dropout = Dropout(config.drop_rate, sites.next())
        self.layers = nn.ModuleList()
        for i, start in enumerate(starts):
            own = rates[start : start + config.depths[i]]
            self.layers.append(
                lr_stage(config, i, own, sites)
                if config.lr_net
                else swin_stage(config, i, own, placement, sites)
            )
        self.norm = nn.LayerNorm(self.channels[-1]) if norm and not config.lr_net else nn.Identity()

    @property
    def channels(self) -> tuple[int, ...]:
        """C of the map of each stage."""
        return tuple(self.config.stage_dim(stage) for stage in range(len(self.config.depths)))

    @property
    def strides(self) -> tuple[int, ...]:
        """s of the map of each stage."""
        return tuple(self.config.patch_size * 2**stage for stage in range(len(self.config.depths)))

    def forward_features(
        self,
        images: Tensor,
        keys: Tensor | None = None,
        call: RoutingOverrides | None = None,
        *,
        stages: int | None = None,
    ) -> Features:
        """The map of each stage, for dense tasks.

        Add `aux_loss` of the result to the loss of a task, as the experts' balance depends on it.

        Args:
            images: (B, in_chans, h, w) of any size, normalised; clips are (B, in_chans, d, h, w).
            keys: (B,) int64 of `random.keyed.sample_keys`; the source of every draw. Without them a training
                model draws keys from torch's global generator.
            call: what this pass changes of the MoE layers' configuration: top_k, capacity, exchange.
            stages: how many are computed; None: all.
        """
        keys = self.drawn_keys(images) if keys is None else keys
        return self._run_stages(self.patch_embed(images), keys, call, stages)

    def forward_pooled(
        self, images: Tensor, keys: Tensor | None = None, call: RoutingOverrides | None = None
    ) -> tuple[Tensor, dict[str, MoEStats]]:
        """The last map, normalised, and its mean over the tokens; arguments as in forward_features.

        Returns:
            (B, C of the last stage), and the statistics of every MoE layer.
        """
        features = self.forward_features(images, keys, call)
        return self.pool(features.maps[-1]), features.moe

    def pool(self, last: Tensor) -> Tensor:
        """The last map (B, *sides, C), normalised, and its mean over the tokens: (B, C)."""
        return self.norm(last).mean(dim=tuple(range(1, last.dim() - 1)))

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
            mask_token: (C of the first stage,).
            call: as in forward_features.

        Returns:
            (B, h / s, w / s, C of the last stage), and the statistics of every MoE layer.
        """
        require(self.config.lr_net is None, "an LR-Net (model.lr_net) has no patches that could be masked")
        x = self.patch_embed(images)
        x = torch.where(mask[..., None], mask_token.to(x.dtype), x)
        features = self._run_stages(x, keys, call)
        return self.norm(features.maps[-1]), features.moe

    def drawn_keys(self, images: Tensor) -> Tensor:
        """Keys (B,) of images without any: drawn in training, where draws matter."""
        keys = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        # not random_, which breaks a compiled graph
        return torch.randint_like(keys, 2**63 - 1) if self.training else keys

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

    def _run_stages(
        self, x: Tensor, keys: Tensor, call: RoutingOverrides | None, stages: int | None = None
    ) -> Features:
        """The features of embedded patches (B, *sides, C) from the first stages, None of all."""
        x = self.dropout(x, keys)
        maps: list[Tensor] = []
        statistics: dict[str, MoEStats] = {}
        wanted = self._branch_scales(x, keys)[:stages]
        for i, (stage, scales) in enumerate(zip(self.layers, wanted, strict=stages is None)):
            x, by_block = stage(x, keys, call, scales)
            maps.append(x)
            statistics |= {f"layers.{i}.blocks.{block}": stats for block, stats in by_block.items()}
        return Features(maps=maps, strides=self.strides[:stages], moe=statistics)

    def _branch_scales(self, x: Tensor, keys: Tensor) -> Sequence[Tensor | None]:
        """The scales (2 * blocks, B) of each stage, drawn at once for all; None without drop path."""
        blocks = [module for module in self.layers.modules() if isinstance(module, SwinBlock)]
        drop_paths = [drop_path for block in blocks for drop_path in block.drop_paths]
        scales = branch_scales(drop_paths, keys, x.dtype)
        if scales is None:
            return [None] * len(self.layers)
        return scales.split([2 * depth for depth in self.config.depths])
