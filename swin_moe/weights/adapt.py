"""What may differ between weights and a model: the classifier, and the window that positions are relative to.

Legend: R offsets of a window, see tables.py; h heads.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch

from swin_moe.config import ModelConfig
from swin_moe.sizes import Size, as_text
from swin_moe.text_files import read_text
from swin_moe.weights.converted import ConvertedStateDict, Window
from swin_moe.weights.errors import NoClassifierError, WeightsError
from swin_moe.weights.parts import HEAD
from swin_moe.weights.tables import resized_table, rows, window_of_rows

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
        reason = f"the weights have no classifier, the model has one of {ours} classes"
        raise NoClassifierError(f"{reason}; {remedy}")
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
    """Resize position bias tables (R, h) to the model's windows; see `tables.resized_table`.

    Those of images get the height and the width of the windows of a model of clips, see inflate.py.

    Returns:
        What was done, and what the weights do not determine.
    """
    changes: dict[str, int] = {}
    unknown: dict[int, Window] = {}
    for name, table in converted.tensors.items():
        if not name.endswith("relative_position_bias_table") or name not in shapes or table.dim() != 2:
            continue
        stage = int(name.split(".")[1])
        own, old = config.stage_window(stage)[-converted.axes :], converted.table_windows.get(stage)
        if old is None or rows(old) != len(table):  # the file does not say
            old = window_of_rows(len(table), own)
            unknown |= {stage: own} if old == own and len({*own[-2:]}) > 1 else {}
        if old == own or rows(old) != len(table) or table.shape[1] != shapes[name][1]:
            continue  # fits, or is of another model, as the comparison of shapes will say
        converted.tensors[name] = resized_table(table, old, own)
        cubic = "bicubic" if old[:-2] == own[:-2] else "cubic in time and over the image"
        change = f"position bias: window {as_text(old)} resized to {as_text(own)}, {cubic}"
        changes[change] = changes.get(change, 0) + 1
    notices = [
        f"position bias: a {converted.format} file does not tell the height of a window from its width; "
        f"stage {stage}'s is taken as {as_text(window)}"
        for stage, window in unknown.items()
    ]
    return [f"{change} ({count} tables)" for change, count in changes.items()], notices


def check_windows(converted: ConvertedStateDict, config: ModelConfig) -> list[str]:
    """See that a log-spaced position bias is relative to the windows that it was learned with.

    Of the bias of images in a model of clips, that is the height and the width of its windows.

    Returns:
        What the weights do not determine.

    Raises:
        WeightsError: the model's windows are others, and model.pretrained_window_sizes does not say so.
    """
    if config.position_bias != "log_cpb" or config.attention == "mlp":
        return []
    stages = range(len(config.depths))
    own = [config.stage_window(stage)[-converted.axes :] for stage in stages]
    ours = [config.pretrained_window(stage)[-converted.axes :] for stage in stages]
    if not converted.windows:
        return [
            f"position bias: a {converted.format} file does not say with which windows it was learned; taken "
            f"as {_written(ours)} (model.pretrained_window_sizes, where it is set)"
        ]
    learned = [_known(converted.windows.get(stage, ours[stage]), ours[stage]) for stage in stages]
    each = zip(chain(*learned), chain(*ours), chain(*own), strict=True)
    if any(a != b for a, b, side in each if side > 1):
        setting = _written(config.pretrained_window_sizes) if config.pretrained_window_sizes else None
        raise WeightsError(
            f"these weights learned their position bias with windows of {_written(learned)}, the model's are "
            f"{_written(own)}: set model.pretrained_window_sizes={_written(learned)} (got {setting})"
        )
    return []


def check_padding(converted: ConvertedStateDict, config: ModelConfig) -> list[str]:
    """Whether weights of a model with another rule of padding are for one with other results."""
    rules = {converted.padding, config.window_padding}
    if converted.padding in (None, "hidden") or len(rules) == 1:
        return []
    window = (config.window_frames, config.window_size, config.window_size)[-converted.axes :]
    for stage in range(len(config.depths)):
        sides = config.stage_resolution(stage)[-converted.axes :]
        if any(_differ(rules, *pair) for pair in zip(sides, window, strict=True)):
            return [
                f"window padding: these weights are of a model with model.window_padding={converted.padding};"
                f" here it is {config.window_padding}, which gives other results: stage {stage} has a map of "
                f"{' x '.join(map(str, sides))} and windows of {as_text(window)}"
            ]
    return []


def _differ(rules: Set[str | None], side: int, window: int) -> bool:
    """Whether two rules of model.window_padding treat a side of a map otherwise.

    `hidden` alone hides padding, and `visible` alone shifts windows along a side that is not longer.
    """
    return ("hidden" in rules and side % window > 0) or ("visible" in rules and side <= window)


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
