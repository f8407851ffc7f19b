"""Swin Transformers, dense and with experts: models, routers, experts, losses."""

from swin_moe.config import ModelConfig, ModelError, MoEConfig
from swin_moe.model import ModelOutput, SwinTransformer, build_model

__all__ = ["MoEConfig", "ModelConfig", "ModelError", "ModelOutput", "SwinTransformer", "build_model"]
