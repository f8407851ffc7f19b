"""Weights under our names, whatever they were called: what every format is translated to."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(kw_only=True)
class Translated:
    """Tensors under our names, one name an expert (`layers.1.blocks.3.mlp.experts.5.fc1_weight`)."""

    format: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # of ours, the name that the file has
    dropped: dict[str, str] = field(default_factory=dict)  # of theirs, why it is not used
    unknown: list[str] = field(default_factory=list)  # theirs that no Swin of this format has
    windows: dict[int, int] = field(default_factory=dict)  # of each stage, what log_cpb is relative to

    def put(self, ours: str, theirs: str, tensor: Tensor) -> None:
        """Add one tensor."""
        self.tensors[ours], self.names[ours] = tensor, theirs


def learned_window(coordinates: Tensor) -> int | None:
    """The window that a table of log-spaced offsets is relative to: its pretrained window, or its own.

    The largest entry of a (1, 2w - 1, 2w - 1, 2) table is log2(8 (w - 1) / (p - 1) + 1) / 3 (Liu et al. 2022,
    equation 4), which is solved for p.
    """
    window = (coordinates.shape[1] + 1) // 2
    largest = float(coordinates.max())
    if window < 2 or not 0 < largest < 10:
        return None
    return round(8 * (window - 1) / (2 ** (3 * largest) - 1)) + 1


def windows_of(config: Mapping[str, Any], *, rounds_up: bool) -> dict[int, int]:
    """What log_cpb is relative to in each stage, by a configuration of ours or of Hugging Face.

    Args:
        config: with image_size, patch_size, window_size, depths and perhaps pretrained_window_sizes.
        rounds_up: whether a stage's map is rounded up, as here, or down.
    """
    try:
        sizes = config.get("pretrained_window_sizes") or [0] * len(config["depths"])
        patches = config["image_size"] / config["patch_size"]
        rounding = math.ceil if rounds_up else math.floor
        sides = [rounding(patches / 2**stage) for stage in range(len(config["depths"]))]
        own = [min(config["window_size"], side) for side in sides]
        return {stage: sizes[stage] or window for stage, window in enumerate(own)}
    except (KeyError, TypeError, IndexError):  # no such options, or sizes given as pairs
        return {}
