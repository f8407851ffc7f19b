"""Label spaces: the class names of data sets and runs are compared wherever two of them meet.

A model's output i stands for class i of the data that it was trained on. It judges the images of another data
set only where that has the same names in the same order, or where labels are mapped by name
(`data.match_classes`). Where one side has no names, labels are compared by number, and a note says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_shards.errors import DataError
from data_shards.format.classes import differences, is_numbered, label_map, numbered, shown
from data_shards.format.index import Manifest
from data_shards.storage.manifest import checked_manifest
from data_shards.stream.patterns import redacted
from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.tasks.registry import task_spec
from launcher.validation.train_sets import train_manifests

MATCH = "--match-classes (data.match_classes=true) maps labels by name"


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The class names of a data set or a run, in the order of its labels.

    `of` is what messages call it. `unnamed` says why nobody knows the names, which are then numbers.
    """

    of: str
    names: tuple[str, ...]
    unnamed: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelFit:
    """How the labels of one data set become those of another, or of a run.

    `mapped_to` are the class names to which labels are mapped by name, None where they stay as they are.
    `note` is what a person must know of it, or "".
    """

    mapped_to: tuple[str, ...] | None = None
    note: str = ""


def of_data(option: str, place: str, manifest: Manifest) -> Classes:
    """The classes of a data set that has a manifest."""
    return Classes(of=f"{option} ({redacted(place)})", names=manifest.classes)


def of_tars(option: str, place: str, count: int) -> Classes:
    """The classes of tars without a manifest, of which a model tells `count` apart."""
    unnamed = "tars without a manifest have numbers alone"
    return Classes(of=f"{option} ({redacted(place)})", names=numbered(count), unnamed=unnamed)


def fit(found: Classes, wanted: Classes, *, match: bool, otherwise: str) -> LabelFit:
    """How labels of `found` become those of `wanted`.

    Args:
        found: of the images.
        wanted: of what judges them.
        match: map labels by name where the lists differ.
        otherwise: what to do about classes that `wanted` does not have.

    Raises:
        ConfigError: they do not become those of `wanted`, in one line with the first differences.
    """
    unnamed = found.unnamed or wanted.unnamed
    if found.names == wanted.names and not unnamed:
        return LabelFit()
    if match:
        return _mapped(found, wanted, otherwise)
    unnamed = unnamed or _numbers(found, wanted)
    if unnamed and len(found.names) == len(wanted.names):
        sides = f"the class names of {found.of} and of {wanted.of}"
        return LabelFit(note=f"{sides} could not be compared ({unnamed}): label i is taken for label i")
    raise ConfigError(_misfit(found, wanted, unnamed, otherwise))


def _numbers(found: Classes, wanted: Classes) -> str:
    """That one of two sides has numbers for names, and the other has names."""
    numbers = [side.of for side in (found, wanted) if is_numbered(side.names)]
    return f"{numbers[0]} has numbers for names" if len(numbers) == 1 else ""


def _mapped(found: Classes, wanted: Classes, otherwise: str) -> LabelFit:
    what = f"the labels of {found.of} cannot be mapped by name to those of {wanted.of}"
    if unnamed := found.unnamed or wanted.unnamed:
        raise ConfigError(f"{what}: {unnamed}; leave out --match-classes (data.match_classes)")
    try:
        label_map(found.names, wanted.names)
    except DataError as error:
        raise ConfigError(f"{what}: {error}; {otherwise}") from None
    here = set(found.names)
    missing = [name for name in wanted.names if name not in here]
    without = f"; it lacks {len(missing)} of these classes: {shown(missing)}" if missing else ""
    to = f"the {len(wanted.names)} classes of {wanted.of}"
    return LabelFit(
        mapped_to=wanted.names, note=f"the labels of {found.of} are mapped by name to {to}{without}"
    )


def _misfit(found: Classes, wanted: Classes, unnamed: str, otherwise: str) -> str:
    must = f"the classes of {found.of} must be those of {wanted.of}"
    if unnamed:
        counts = f"{len(found.names)} classes instead of {len(wanted.names)}"
        return f"{must}: {counts} ({unnamed}); take data with as many classes"
    is_subset = set(found.names) <= set(wanted.names)
    return f"{must}: {differences(found.names, wanted.names)}; {MATCH if is_subset else otherwise}"


def trained_on(config: RunConfig, train: Manifest | None) -> Classes:
    """The classes that a run is trained on: those of its first training set.

    Args:
        config: of the run.
        train: of the first training set; None where data.train is tars without one.
    """
    option, place = next(iter(config.data.train_places.items()))
    return of_data(option, place, train) if train else of_tars(option, place, config.model.num_classes)


def training_fit(config: RunConfig, option: str, found: Manifest, trained: Classes) -> LabelFit:
    """How the labels of a set of data.train or data.val become those that a run is trained on.

    Args:
        config: of the run.
        option: of the set.
        found: its manifest.
        trained: of `trained_on`.

    Raises:
        ConfigError: see `fit`.
    """
    here = of_data(option, _place(config, option), found)
    match, otherwise = config.data.match_classes, "pack both splits with the same classes"
    return fit(here, trained, match=match, otherwise=otherwise)


def _place(config: RunConfig, option: str) -> str:
    return {**config.data.train_places, **config.data.val_places}[option]


def class_errors(config: RunConfig, manifests: Mapping[str, Manifest]) -> list[str]:
    """What is wrong with the classes of a run's data, a line each.

    Args:
        config: of the run.
        manifests: of the sets of data.train and data.val by option, without those that cannot be read.
    """
    if not task_spec(config.task).has_classes:
        return []
    data, (first, *_) = config.data, config.data.train_places
    counts = {option: _count_errors(config, option, manifest) for option, manifest in manifests.items()}
    if first not in manifests and not data.trains_on_tars:
        return [line for lines in counts.values() for line in lines]
    trained, errors = trained_on(config, manifests.get(first)), counts.pop(first, [])
    for option, lines in counts.items():
        if data.trains_on_tars and lines:
            errors += lines
            continue
        try:
            is_mapped = training_fit(config, option, manifests[option], trained).mapped_to
            errors += [] if is_mapped else lines
        except ConfigError as error:
            errors.append(str(error))
    return errors


def _count_errors(config: RunConfig, option: str, manifest: Manifest) -> list[str]:
    if len(manifest.classes) == config.model.num_classes:
        return []
    return [
        f"model.num_classes ({config.model.num_classes}) must be the classes of {option} "
        f"({len(manifest.classes)} in {redacted(_place(config, option))})"
    ]


def class_notes(config: RunConfig) -> list[str]:
    """What a person must know of the classes of a run that `class_errors` accepts, a line each."""
    if not task_spec(config.task).has_classes:
        return []
    train, (first, *_) = train_manifests(config.data), config.data.train_places
    trained, others = trained_on(config, train.pop(first, None)), train
    others |= {option: checked_manifest(place) for option, place in config.data.val_places.items()}
    fits = (training_fit(config, option, manifest, trained) for option, manifest in others.items())
    return [one.note for one in fits if one.note]


def is_mapped_by_name(config: RunConfig) -> bool:
    """Whether labels are mapped by name to the classes that are trained."""
    return config.data.match_classes and task_spec(config.task).has_classes


def evaluated_classes(config: RunConfig, train: Sequence[str] | None) -> Sequence[str] | None:
    """The class names to which labels of data.val are mapped in training; None where they stay."""
    return train if is_mapped_by_name(config) else None


def trained_classes(
    config: RunConfig, train: Sequence[str] | None, val: Sequence[str] | None
) -> list[str] | None:
    """The class names that a run records; None for a task without classes, or where no data names them.

    Args:
        config: of the run.
        train: the class names of the first training set; None for tars without a manifest, whose label i
            stands for class i of data.val.
        val: the class names of the first validation set; None without one.
    """
    names = train or val
    return list(names) if names and task_spec(config.task).names_classes else None
