"""Weights from anywhere, and to anywhere: recognised by content, checked to the last tensor."""

from swin_moe.weights.adapt import ClassMap
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.export import FORMATS, save_weights
from swin_moe.weights.load import LoadReport, load_weights

__all__ = ["FORMATS", "ClassMap", "LoadReport", "WeightsError", "load_weights", "save_weights"]
