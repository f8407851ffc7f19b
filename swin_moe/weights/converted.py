"""Weights under our names, whatever they were called: what every format is translated to.

A window has the sides (height, width), and of a model of clips (depth, height, width), in tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from swin_moe.sizes import sides, window_sides

PATCHES = "patch_embed.proj.weight"  # (C, in_chans, p, p), of a model of clips (C, in_chans, frames, p, p)
Window = tuple[int, ...]  # height and width in tokens, of clips time before them


@dataclass(kw_only=True)
class ConvertedStateDict:
    """Tensors under our names, one name an expert (`layers.1.blocks.3.mlp.experts.5.fc1_weight`)."""

    format: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # of ours, the name that the file has
    dropped: dict[str, str] = field(default_factory=dict)  # of theirs, why it is not used
    unknown: list[str] = field(default_factory=list)  # theirs that no Swin of this format has
    windows: dict[int, Window] = field(default_factory=dict)  # by stage, of log_cpb; 0: a side does not tell
    table_windows: dict[int, Window] = field(default_factory=dict)  # by stage, of bias tables
    padding: str | None = None  # model.window_padding of their model, where it is known

    def put(self, ours: str, theirs: str, tensor: Tensor) -> None:
        """Add one tensor."""
        self.tensors[ours], self.names[ours] = tensor, theirs

    def drop(self, ours: str, reason: str) -> None:
        """Take one tensor away that is not used."""
        del self.tensors[ours]
        self.dropped[self.names[ours]] = reason

    def rename(self, format: str, theirs: Mapping[str, str]) -> None:
        """Say where tensors are from that were renamed before they were converted.

        Args:
            format: of the file.
            theirs: the name in the file of each name that was converted; others stay as they are, such as
                those of one expert in a tensor of all.
        """
        self.format = format
        self.names = {ours: theirs.get(name, name) for ours, name in self.names.items()}
        self.dropped = {theirs.get(name, name): why for name, why in self.dropped.items()}
        self.unknown = [theirs.get(name, name) for name in self.unknown]

    @property
    def axes(self) -> int:
        """Of the maps of their model: 2, or 3 where it is one of clips."""
        patches = self.tensors.get(PATCHES)
        return 3 if patches is not None and patches.dim() == 5 else 2


def learned_window(coordinates: Tensor) -> Window:
    """The window that a table of log-spaced offsets is relative to: its pretrained window, or its own.

    The largest entry along a side of a (1, 2h - 1, 2w - 1, 2) table is log2(8 (w - 1) / (p - 1) + 1) / 3 (Liu
    et al. 2022, equation 4), which is solved for p. A side of one token does not tell: 0.
    """
    return _learned_side(coordinates[..., 0], 1), _learned_side(coordinates[..., 1], 2)


def _learned_side(offsets: Tensor, dim: int) -> int:
    window = (offsets.shape[dim] + 1) // 2
    largest = float(offsets.max())
    if window < 2 or not 0 < largest < 10:
        return 0
    return round(8 * (window - 1) / (2 ** (3 * largest) - 1)) + 1


def indexed_window(index: Tensor, axes: int = 2) -> Window:
    """The window of a table of pairs of tokens, (n, n), as `position_bias.relative_index` makes it.

    Along the first row of tokens each index is one less than the one before, but where a row of tokens of the
    window begins, and by more where a plane of a window of three axes does.
    """
    first = index[0]
    falls = (first[:-1] - first[1:]).tolist()
    width = _run(falls, 1)
    rows = falls[width - 1 :: width]  # at the first token of each row but the first
    height = _run(rows, rows[0]) if axes == 3 and rows else len(first) // width
    window = len(first) // width // height, height, width
    return window[3 - axes :]


def _run(values: Sequence[int], value: int) -> int:
    """One more than how many of the first values are `value`."""
    return next((i for i, other in enumerate(values) if other != value), len(values)) + 1


def windows_of(config: Mapping[str, Any], *, rounds_up: bool) -> list[Window]:
    """The window of each stage by a configuration of ours or of Hugging Face; none where it does not say.

    Args:
        config: with image_size, patch_size, window_size and depths; of ours also window_padding and frames.
        rounds_up: whether a stage's map is rounded up, as here, or down.
    """
    rounding = math.ceil if rounds_up else math.floor
    try:
        patches = [x / config["patch_size"] for x in sides(config["image_size"])]
        most: Window = (config["window_size"],) * 2
        maps = [[rounding(x / 2**stage) for x in patches] for stage in range(len(config["depths"]))]
        if frames := config.get("frames"):
            most = config["window_frames"], *most
            maps = [[math.ceil(frames / config["patch_frames"]), *of_map] for of_map in maps]
        if config.get("window_padding", "hidden") != "hidden":
            return [most] * len(maps)
        return [tuple(map(min, most, of_map)) for of_map in maps]
    except (KeyError, TypeError, ValueError):  # no such options, or others than a Swin's
        return []


def learned_windows(config: Mapping[str, Any], own: Sequence[Window]) -> dict[int, Window]:
    """What log_cpb is relative to in each stage: its pretrained window where there is one, or its own."""
    try:
        sizes = config.get("pretrained_window_sizes") or [0] * len(own)
        learned = [window_sides(size, len(window)) for size, window in zip(sizes, own, strict=True)]
        return {
            i: tuple(a or b for a, b in zip(learned[i], window, strict=True)) for i, window in enumerate(own)
        }
    except (TypeError, ValueError, IndexError):  # no windows, or not one a stage
        return {}
