"""The parts of a model whose backbone is its submodule `encoder`."""

from torch import nn

from swin_moe.backbone.backbone import Backbone


def encoder_of(model: nn.Module) -> Backbone:
    """The part before the heads."""
    encoder = model.get_submodule("encoder")
    assert isinstance(encoder, Backbone)
    return encoder


def with_heads(model: nn.Module) -> nn.Module:
    """All of a model: what weights are loaded into where a file may have the heads too."""
    return model
