"""Weights from anywhere, and to anywhere: recognised by content, checked to the last tensor."""

from typing import TYPE_CHECKING

from parallel.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from swin_moe.weights.adapt import ClassMap
    from swin_moe.weights.errors import WeightsError
    from swin_moe.weights.export import save_weights
    from swin_moe.weights.formats import FORMATS
    from swin_moe.weights.load import LoadReport, load_weights

__all__ = ["FORMATS", "ClassMap", "LoadReport", "WeightsError", "load_weights", "save_weights"]
__getattr__ = lazy_exports(__name__, __file__)
