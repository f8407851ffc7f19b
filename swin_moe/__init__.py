"""Swin Transformers, dense and with experts: models, routers, experts, losses."""

from typing import TYPE_CHECKING

from parallel.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from swin_moe.backbone.backbone import Backbone, Features
    from swin_moe.backbone.model import ModelOutput, SwinTransformer
    from swin_moe.config import ModelConfig
    from swin_moe.errors import ModelError
    from swin_moe.moe_config import MoEConfig
    from swin_moe.recipes import list_models
    from swin_moe.registry import build_backbone, build_model
    from swin_moe.version import __version__
    from swin_moe.weights.adapt import ClassMap
    from swin_moe.weights.errors import WeightsError
    from swin_moe.weights.export import save_weights
    from swin_moe.weights.input_spec import InputSpec, input_spec_of
    from swin_moe.weights.load import LoadReport, load_weights
    from swin_moe.weights.trained import load

__all__ = [
    "Backbone",
    "ClassMap",
    "Features",
    "InputSpec",
    "LoadReport",
    "MoEConfig",
    "ModelConfig",
    "ModelError",
    "ModelOutput",
    "SwinTransformer",
    "WeightsError",
    "__version__",
    "build_backbone",
    "build_model",
    "input_spec_of",
    "list_models",
    "load",
    "load_weights",
    "save_weights",
]
__getattr__ = lazy_exports(__name__, __file__)
