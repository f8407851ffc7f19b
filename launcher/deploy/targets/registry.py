"""Targets by name."""

from collections.abc import Mapping

from launcher.deploy.card import TargetName
from launcher.deploy.targets.base import Target
from launcher.deploy.targets.safetensors import SafetensorsTarget

TARGETS: Mapping[TargetName, Target] = {
    "safetensors": SafetensorsTarget(),
}
