"""The named models: each configuration of configs/ by its file's name, built.

    swin_moe.build_model("swinv2_tiny_patch4_window8_256", num_classes=10)

`recipes.py` reads the configurations.
"""

from typing import Any

from parallel.ranks.mesh import Mesh
from swin_moe.backbone import model
from swin_moe.backbone.backbone import Backbone
from swin_moe.config import ModelConfig
from swin_moe.recipes import load_model_config


def build_model(
    name_or_config: str | ModelConfig, *, seed: int = 0, mesh: Mesh | None = None, **overrides: Any
) -> model.SwinTransformer:
    """A model by its name or its configuration, with initial weights; see `load_model_config`.

    Args:
        name_or_config: one of `list_models()`, or a ModelConfig.
        seed: of the weights; every parameter, and every expert, draws from its own generator.
        mesh: the layout; without one all experts are here and no process group is needed.
        overrides: fields of ModelConfig, such as num_classes=10.

    Raises:
        ModelError: an unknown name, an unknown option, or a value that no model can have.
        LayoutError: the experts do not divide over the mesh.
    """
    return model.build_model(load_model_config(name_or_config, **overrides), seed=seed, mesh=mesh)


def build_backbone(
    name_or_config: str | ModelConfig,
    *,
    norm: bool = True,
    seed: int = 0,
    mesh: Mesh | None = None,
    **overrides: Any,
) -> Backbone:
    """The same model without its classifier, for a head of another kind; arguments as in `build_model`.

    Args:
        norm: whether the last map is normalised for a head that reads it alone; see `Backbone`.
    """
    config = load_model_config(name_or_config, **overrides)
    return model.build_backbone(config, norm=norm, seed=seed, mesh=mesh)
