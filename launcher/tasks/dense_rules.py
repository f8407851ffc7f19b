"""Rules that tasks with images of any size share. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.config.schema import RunConfig

if TYPE_CHECKING:  # it imports NumPy
    from data_shards.format.index import Manifest


def unread_options(config: RunConfig, instead: Mapping[str, str], labels_of: str) -> Iterator[str]:
    """Options of data.* that stand for another geometry are not ignored silently: a line for each one set.

    Args:
        config: of the run.
        instead: by the name of each such option, the option that takes its place.
        labels_of: what the labels of the task are of, such as "pixels".
    """
    data = config.data
    for name, other in instead.items():
        default = type(data).__dataclass_fields__[name].default
        if (value := getattr(data, name)) != default:
            shown = "a section" if name == "augment" else value
            yield (
                f"data.{name} ({shown}) does nothing for task={config.task}: leave it at {default}; see "
                f"{other}"
            )
    if data.match_classes:
        yield f"data.match_classes (True) maps labels of images, not of {labels_of}: set it to false"


def norm_group_errors(config: RunConfig, option: str, group: int) -> Iterator[str]:
    """Groups of batch norms must fill micro-batches, or the other way round.

    Args:
        config: of the run.
        option: that says how many images a group has.
        group: its value.
    """
    micro, batch = config.train.micro_batch_size, config.train.global_batch_size
    if micro % group and group % micro:
        yield f"{option} ({group}) must divide train.micro_batch_size ({micro}), or be a multiple of it"
    elif batch % group:
        yield f"{option} ({group}) must divide train.global_batch_size ({batch})"


def norm_layout_errors(config: RunConfig, world_size: int, option: str, group: int) -> Sequence[str]:
    """A group that is larger than a micro-batch lies on neighbouring ranks, in one micro-batch a step.

    Args:
        config: of the run.
        world_size: ranks.
        option: that says how many images a group has.
        group: its value.
    """
    micro, batch = config.train.micro_batch_size, config.train.global_batch_size
    if group <= micro or group % micro or batch % group or batch % (micro * world_size):
        return []  # nothing to span, or another rule says so
    accumulation = batch // (micro * world_size)
    if accumulation == 1 and world_size % (group // micro) == 0:
        return []
    return [
        f"{option} ({group}) spans {group // micro} ranks of train.micro_batch_size ({micro}), which must "
        f"divide the ranks ({world_size}) and have one micro-batch a step (train.global_batch_size ({batch}) "
        f"makes {accumulation}); set {option}={micro}, or another micro-batch"
    ]


def part_class_errors(config: RunConfig, manifests: Mapping[str, Manifest]) -> Sequence[str]:
    """Where data name their classes: the model has an output for each, and all sets have the same ones."""
    outputs = config.model.num_classes
    named = {option: manifest.classes for option, manifest in manifests.items() if manifest.classes}
    errors = [
        f"model.num_classes ({outputs}) must be the classes of {option} ({len(classes)})"
        for option, classes in named.items()
        if len(classes) != outputs
    ]
    if errors or not named:
        return errors
    (first, wanted), *others = named.items()
    found = ((option, class_difference(classes, wanted, first)) for option, classes in others)
    return [f"{option}: {difference}" for option, difference in found if difference]


def class_difference(classes: Sequence[str], wanted: Sequence[str], of: str) -> str:
    """In what the classes of data differ from as many others, for a message; "" if they do not.

    Args:
        classes: their names, in order.
        wanted: the other names.
        of: whose these are.
    """
    for label, (found, known) in enumerate(zip(classes, wanted, strict=True)):
        if found != known:
            return (
                f"class {label} is {found!r}, and that of {of} is {known!r}; pack the data with the same "
                "classes in the same order"
            )
    return ""
