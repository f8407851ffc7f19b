"""A small model and experts whose memory is predicted, and the module that a run of it trains."""

from typing import Any

from torch import nn

from launcher.config.schema import RunConfig
from swin_moe import ModelConfig
from swin_moe.backbone.model import build_model
from swin_moe.heads.simmim import build_simmim
from tests.models import small_moe, small_run, small_swin

IMAGES = 4
SMALL = small_swin(depths=(3, 2), window_size=3, drop_rate=0.1, drop_path_rate=0.3)
MOE = small_moe(top_k=2, capacity_factor=0.0)


def run_config(model: ModelConfig, **options: Any) -> RunConfig:
    """A run of one step of four images a rank."""
    return small_run(model, **({"micro_batch_size": IMAGES} | options))


def real_model(config: RunConfig) -> nn.Module:
    """The model that a run trains, on one rank."""
    if config.task == "simmim":
        return build_simmim(config.model, config.simmim).train()
    return build_model(config.model, exchange=config.parallel.expert_exchange).train()
