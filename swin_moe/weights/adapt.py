"""What may differ between weights and a model: the classifier, and the window that positions are relative to.

Legend: a window of H x W tokens, R = (2H - 1) * (2W - 1) offsets, h heads.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe.config import ModelConfig
from swin_moe.sizes import Size, as_text
from swin_moe.text_files import read_text
from swin_moe.weights.converted import ConvertedStateDict, Window
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.parts import HEAD

UNNEEDED = {
    "mask_token": "the mask token",
    "norm.weight": "the norm of the last map",
    "norm.bias": "the norm of the last map",
}


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """For each class of the model, the class of the weights that it is: 22K -> 1K for instance."""

    indices: tuple[int, ...]
    name: str = "class map"

    @staticmethod
    def read(path: str | Path) -> "ClassMap":
        """A text file with one index a line, the first for class 0.

        Raises:
            WeightsError: it cannot be read, or holds something else.
        """
        try:
            lines = read_text(path).split("\n")
        except (OSError, ValueError) as error:
            raise WeightsError(f"the class map {path} cannot be read: {error}") from error
        lines = [line.strip() for line in lines]
        while lines and not lines[-1]:
            lines.pop()
        for number, line in enumerate(lines, start=1):
            if not (line.isascii() and line.isdecimal()):
                raise WeightsError(f"{path}, line {number}: not the index of a class (got {line!r})")
        return ClassMap(indices=tuple(map(int, lines)), name=str(path))


Head = Literal["strict", "replace"] | ClassMap


def adapt_head(
    converted: ConvertedStateDict, shapes: Mapping[str, list[int]], head: Head, option: str
) -> list[str]:
    """Adapt the classifier of the weights to the model by `head`. Returns what was done.

    `option` is what messages call `head`.

    With `replace` the model's own stays, and the tensors of the weights are dropped; so they are of a model
    without a classifier.
    """
    remedy = f"for a new classifier: {option}=replace; to pick classes: {option}=FILE, a class map"
    theirs = next((len(converted.tensors[name]) for name in HEAD if name in converted.tensors), 0)
    ours = next((shapes[name][0] for name in HEAD if name in shapes), 0)
    if not ours:
        if isinstance(head, ClassMap):
            raise WeightsError(f"{head.name} picks classes, and the model has no classifier: leave it out")
        _drop_head(converted, "the classifier, and the model has none")
        return []
    if head == "replace":
        _drop_head(converted, "the classifier is replaced")
        return [f"classifier: the model's own of {ours} classes stays, that of {theirs} classes is not used"]
    if theirs == 0:
        raise WeightsError(f"the weights have no classifier, the model has one of {ours} classes; {remedy}")
    if isinstance(head, ClassMap):
        return [f"classifier: {pick_classes(converted, HEAD, head, theirs, ours)}"]
    if theirs != ours:
        raise WeightsError(f"the weights have {theirs} classes, model.num_classes is {ours}; {remedy}")
    return []


def _drop_head(converted: ConvertedStateDict, reason: str) -> None:
    for name in HEAD:
        if name in converted.tensors:
            converted.drop(name, reason)


def _own_rows(name: str, classes: Sequence[int], known: int) -> list[int]:
    """A classifier of one row a class."""
    return [*classes]


def pick_classes(
    converted: ConvertedStateDict,
    names: Iterable[str],
    head: ClassMap,
    theirs: int,
    ours: int,
    rows: Callable[[str, Sequence[int], int], list[int]] = _own_rows,
) -> str:
    """Take the rows of a classifier's tensors that a class map names. Returns what was done.

    Args:
        converted: the weights; changed in place.
        names: of the classifier's tensors.
        head: a class of the weights for each of the model.
        theirs: classes of the weights; `ours` those of the model.
        rows: of a tensor by its name, those of some of `theirs` classes.

    Raises:
        WeightsError: the class map is of other classes.
    """
    if len(head.indices) != ours:
        raise WeightsError(
            f"{head.name} has {len(head.indices)} lines, model.num_classes is {ours}: one each"
        )
    if max(head.indices, default=0) >= theirs:
        raise WeightsError(f"{head.name} names class {max(head.indices)}; the weights have 0..{theirs - 1}")
    for name in names:
        if name in converted.tensors:
            picked = rows(name, head.indices, theirs)
            converted.tensors[name] = converted.tensors[name][torch.tensor(picked)]
    return f"{ours} of {theirs} classes, by {head.name}"


def resize_tables(
    converted: ConvertedStateDict, shapes: Mapping[str, list[int]], config: ModelConfig
) -> tuple[list[str], list[str]]:
    """Resize position bias tables (R, h) to the model's windows, bicubically.

    As in Liu et al. 2021, section 4.1: each head's table is an image of 2H - 1 x 2W - 1 pixels.

    Returns:
        What was done, and what the weights do not determine.
    """
    changes: dict[str, int] = {}
    unknown: dict[int, Window] = {}
    for name, table in converted.tensors.items():
        if not name.endswith("relative_position_bias_table") or name not in shapes or table.dim() != 2:
            continue
        stage = int(name.split(".")[1])
        own, old = config.stage_window(stage), converted.table_windows.get(stage)
        if old is None or _rows(old) != len(table):  # the file does not say
            old = own if _rows(own) == len(table) else _square(len(table))
            unknown |= {stage: own} if old == own and own[0] != own[1] else {}
        are_of_images = len(old) == len(own) == 2
        if not are_of_images or old == own or _rows(old) != len(table) or table.shape[1] != shapes[name][1]:
            continue  # fits, or is of another model, as the comparison of shapes will say
        converted.tensors[name] = _resized(table, old, own)
        change = f"position bias: window {as_text(old)} resized to {as_text(own)}, bicubic"
        changes[change] = changes.get(change, 0) + 1
    notices = [
        f"position bias: a {converted.format} file does not tell the height of a window from its width; "
        f"stage {stage}'s is taken as {as_text(window)}"
        for stage, window in unknown.items()
    ]
    return [f"{change} ({count} tables)" for change, count in changes.items()], notices


def _rows(window: Window) -> int:
    """Offsets of a window: the rows of its table."""
    return math.prod(2 * side - 1 for side in window)


def _square(rows: int) -> Window:
    """The square window whose table has so many rows, or the next smaller one."""
    side = (math.isqrt(rows) + 1) // 2
    return side, side


def _resized(table: Tensor, old: Window, new: Window) -> Tensor:
    before, after = ((2 * height - 1, 2 * width - 1) for height, width in (old, new))
    image = table.float().t().reshape(1, -1, *before)
    resized = F.interpolate(image, size=after, mode="bicubic", align_corners=False)
    return resized.flatten(2)[0].t().to(table.dtype)


def check_windows(converted: ConvertedStateDict, config: ModelConfig) -> list[str]:
    """See that a log-spaced position bias is relative to the windows that it was learned with.

    Returns:
        What the weights do not determine.

    Raises:
        WeightsError: the model's windows are others, and model.pretrained_window_sizes does not say so.
    """
    if config.position_bias != "log_cpb" or config.attention == "mlp":
        return []
    stages = range(len(config.depths))
    own = [config.stage_window(stage) for stage in stages]
    ours = [config.pretrained_window(stage) for stage in stages]
    if not converted.windows:
        return [
            f"position bias: a {converted.format} file does not say with which windows it was learned; taken "
            f"as {_written(ours)} (model.pretrained_window_sizes, where it is set)"
        ]
    learned = [_known(converted.windows.get(stage, (0,) * len(ours[stage])), ours[stage]) for stage in stages]
    each = zip(chain(*learned), chain(*ours), chain(*own), strict=True)
    if any(a != b for a, b, side in each if side > 1):
        setting = _written(config.pretrained_window_sizes) if config.pretrained_window_sizes else None
        raise WeightsError(
            f"these weights learned their position bias with windows of {_written(learned)}, the model's are "
            f"{_written(own)}: set model.pretrained_window_sizes={_written(learned)} (got {setting})"
        )
    return []


def check_padding(converted: ConvertedStateDict, config: ModelConfig) -> list[str]:
    """Whether weights of a model that sees padding are for one that hides it, with other results."""
    if not converted.sees_padding or config.window_padding == "visible":
        return []
    for stage in range(len(config.depths)):
        height, width = config.stage_resolution(stage)[-2:]
        if any(side % config.window_size or side <= config.window_size for side in (height, width)):
            return [
                "window padding: these weights are of a model with model.window_padding=visible; here it is "
                f"hidden, which gives other results: stage {stage} has a map of {height} x {width} and "
                f"windows of {config.window_size}"
            ]
    return []


def _known(window: Window, otherwise: Window) -> Window:
    """A window, with the sides that it does not tell from another one."""
    return tuple(own or other for own, other in zip(window, otherwise, strict=True))


def _written(windows: Sequence[Size]) -> list[int | list[int]]:
    """Windows as a configuration has them: one number for a square, else all sides."""
    numbers = [[window] if isinstance(window, int) else list(window) for window in windows]
    return [own[0] if len(own) < 3 and len(set(own)) == 1 else own for own in numbers]


def drop_unneeded(converted: ConvertedStateDict, shapes: Mapping[str, list[int]]) -> None:
    """What a model can do without: a mask token, the norm of the last map (of a backbone whose maps are
    normalised by heads), and Tutel's fc2 biases where they are frozen at zero."""
    for name, what in UNNEEDED.items():
        if name in converted.tensors and name not in shapes:
            converted.drop(name, f"{what}, and the model has none")
    for name in [name for name in converted.tensors if re.search(r"\.experts\.\d+\.fc2_bias$", name)]:
        if name not in shapes and not converted.tensors[name].any():
            converted.drop(name, "zero, and the model has none")
