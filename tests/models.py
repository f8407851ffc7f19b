"""Small models, layers, weights and run configurations for the tests of every package.

    small_swin()                                   two stages of two blocks; maps of 8 x 8 and 4 x 4 tokens
    small_lr_net()                                 an LR-Net of two stages
    small_swin(**V2, moe=small_moe(top_k=2))       SwinV2 with experts in one block of each stage
    moe_layer(small_moe(), dim=4, hidden=6)        one MoE layer, all experts on this rank
    small_run(small_swin(), micro_batch_size=2)    the configuration of a run that reads no files

Each takes the fields to change by keyword. The numbers are the same on every call: no function draws from the
global generator.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from launcher.config.schema import DataConfig, RunConfig, TrainConfig
from launcher.config.task_sections import config_class
from parallel.experts.placement import ExpertParallel
from swin_moe.config import ModelConfig
from swin_moe.moe.layer import MoELayer
from swin_moe.moe_config import MoEConfig
from swin_moe.random.keyed import SiteCounter
from swin_moe.relation_config import LocalRelationConfig, LRNetConfig

# what makes a SwinV2 of a Swin
V2: dict[str, Any] = {"attention": "cosine", "position_bias": "log_cpb", "norm": "post"}

M = TypeVar("M", bound=nn.Module)


def small_swin(**changes: Any) -> ModelConfig:
    """A Swin of two stages: 32 x 32 pixels, patches of 4, windows of 4 x 4 tokens, widths 8 and 16."""
    small: dict[str, Any] = {
        "image_size": 32,
        "num_classes": 5,
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "window_size": 4,
    }
    return ModelConfig(**(small | changes))


def small_lr_net(**changes: Any) -> ModelConfig:
    """An LR-Net of two stages: 32 x 32 pixels, windows of 3 x 3 tokens, widths 4 and 8, maps of 8 and 16."""
    small: dict[str, Any] = {
        "attention": "local_relation",
        "image_size": 32,
        "num_classes": 5,
        "embed_dim": 8,
        "depths": (2, 1),
        "local_relation": LocalRelationConfig(kernel_size=3, share=2, prior_hidden=4),
        "lr_net": LRNetConfig(width=4, stem_width=4, norm_group_images=2),
        "drop_path_rate": 0.0,
    }
    return ModelConfig(**(small | changes))


def small_moe(**changes: Any) -> MoEConfig:
    """Four experts in the second block of stage 0 and the first of stage 1, in groups of two images."""
    small: dict[str, Any] = {"blocks": ((1,), (0,)), "num_experts": 4, "routing_group_images": 2}
    return MoEConfig(**(small | changes))


def moe_layer(
    config: MoEConfig,
    *,
    dim: int,
    hidden: int,
    placement: ExpertParallel | None = None,
    fc2_bias: bool = True,
) -> MoELayer:
    """An MoE layer whose parameters are not initialised; see `randomize`.

    Args:
        config: of the layer; its `blocks` do not matter.
        dim: C.
        hidden: hidden channels of an expert.
        placement: of the experts; None has all of them on this rank.
        fc2_bias: whether the experts' second linear layer has a bias.
    """
    placement = placement or ExpertParallel.on_one_rank(config.num_experts)
    return MoELayer(dim, hidden, config, placement, fc2_bias=fc2_bias, sites=SiteCounter())


def small_run(
    model: ModelConfig | None = None,
    *,
    micro_batch_size: int = 1,
    ranks: int = 1,
    grad_accum_steps: int = 1,
    train: Mapping[str, Any] | None = None,
    **sections: Any,
) -> RunConfig:
    """The configuration of a run whose directory and shards do not exist.

    Args:
        model: Swin-T if None.
        micro_batch_size: images of a rank and forward pass.
        ranks: on which the global batch is spread.
        grad_accum_steps: micro-batches of an optimizer step.
        train: further options of `train`.
        sections: further sections, such as `optim` and `parallel`.
    """
    images = micro_batch_size * ranks * grad_accum_steps
    options = {"micro_batch_size": micro_batch_size, "global_batch_size": images, **(train or {})}
    kind = config_class(sections.get("task", RunConfig.task))
    return kind(
        run_dir="run",
        model=model or ModelConfig(),
        data=DataConfig(train="train", val="val"),
        train=TrainConfig(**options),
        **sections,
    )


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers of this shape, a function of the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def images_of(
    config: ModelConfig, count: int = 2, *, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Normalised images or clips of the configured size: (count, in_chans, *sides)."""
    return randn(count, config.in_chans, *config.input_sides, seed=seed, dtype=dtype)


@torch.no_grad()
def randomize(module: M, *, std: float = 0.5, seed: int = 0) -> M:
    """Draw every parameter, so that all of them matter: norms around 1, everything else around 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(1 + 0.3 * noise if _is_norm_weight(name) else std * noise)
    return module


@torch.no_grad()
def randomize_by_fan_in(module: M, *, seed: int = 0) -> M:
    """Draw every parameter: norms around 1, temperatures around 10, matrices that keep the size of inputs."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if _is_norm_weight(name):
            parameter.copy_(1 + 0.3 * noise)
        elif name.endswith("logit_scale"):
            parameter.copy_(math.log(10) + 0.3 * noise)
        else:
            is_matrix = parameter.dim() > 1 and "table" not in name
            parameter.copy_(noise / math.sqrt(parameter[0].numel()) if is_matrix else 0.3 * noise)
    return module


@torch.no_grad()
def add_noise(module: M, std: float, *, seed: int = 0) -> M:
    """Move every parameter off its initial value: biases and SwinV2's branch norms start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter += std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def _is_norm_weight(name: str) -> bool:
    return "norm" in name and name.endswith("weight")
