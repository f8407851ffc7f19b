"""Swin Transformers, dense and with experts: models, routers, experts, losses."""

from swin_moe.backbone.backbone import Backbone, Features
from swin_moe.backbone.model import ModelOutput, SwinTransformer
from swin_moe.config import ModelConfig, ModelError, MoEConfig
from swin_moe.registry import build_backbone, build_model, list_models
from swin_moe.weights import ClassMap, LoadReport, WeightsError, load_weights, save_weights

__all__ = [
    "Backbone",
    "ClassMap",
    "Features",
    "LoadReport",
    "MoEConfig",
    "ModelConfig",
    "ModelError",
    "ModelOutput",
    "SwinTransformer",
    "WeightsError",
    "build_backbone",
    "build_model",
    "list_models",
    "load_weights",
    "save_weights",
]
