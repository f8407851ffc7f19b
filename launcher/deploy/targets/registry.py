"""Targets by name."""

from collections.abc import Mapping

from launcher.deploy.options import TargetName
from launcher.deploy.targets.base import Target
from launcher.deploy.targets.int8 import Int8Target
from launcher.deploy.targets.onnx_runtime import OnnxTarget
from launcher.deploy.targets.pt2 import Pt2Target
from launcher.deploy.targets.safetensors import SafetensorsTarget

TARGETS: Mapping[TargetName, Target] = {
    "pt2": Pt2Target(),
    "onnx": OnnxTarget(),
    "onnx-int8": Int8Target(),
    "safetensors": SafetensorsTarget(),
}
