"""Class lists: whether two are the same, how they differ, and the labels of one in terms of the other.

A label is an index into the list of class names of its data set, so two data sets have the same labels only
if they have the same names in the same order. K = classes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from data_shards.errors import DataError

NAMED = 3  # names or labels that a message shows before it counts
LONGEST = 60  # characters of a name in a message


def numbered(count: int) -> tuple[str, ...]:
    """The names of classes that are known by their labels alone: "0", "1", ..."""
    return tuple(map(str, range(count)))


def is_numbered(classes: Sequence[str]) -> bool:
    """Whether the names are the labels, as `shards index` gives them to tars with numbers in KEY.cls."""
    return tuple(classes) == numbered(len(classes))


def label_map(classes: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """The label in `wanted` of each class, by its name: (K,) int64.

    Raises:
        DataError: `wanted` lacks a name, or either list has a name twice.
    """
    for names in (wanted, classes):
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise DataError(f"class names must differ, but {shown(twice)} stands for several labels")
    indices = {name: label for label, name in enumerate(wanted)}
    if unknown := [name for name in classes if name not in indices]:
        raise DataError(f"no class of that name for {shown(unknown)}")
    return np.array([indices[name] for name in classes], dtype=np.int64)


def differences(classes: Sequence[str], wanted: Sequence[str]) -> str:
    """The first differences of a class list from the one that it should be, for one line; "" for none."""
    if tuple(classes) == tuple(wanted):
        return ""
    parts = [f"{len(classes)} classes instead of {len(wanted)}"] if len(classes) != len(wanted) else []
    other = [
        f"label {label} is {quoted(name)} instead of {quoted(right)}"
        for label, (name, right) in enumerate(zip(classes, wanted, strict=False))
        if name != right
    ]
    parts += [*other[:NAMED], f"{len(other) - NAMED} more labels differ"] if len(other) > NAMED else other
    known, here = set(wanted), set(classes)
    if extra := [name for name in classes if name not in known]:
        parts.append(f"unknown: {shown(extra)}")
    if missing := [name for name in wanted if name not in here]:
        parts.append(f"missing: {shown(missing)}")
    return "; ".join(parts)


def shown(names: Sequence[str]) -> str:
    """The first of some names for a message, and how many more there are."""
    return listed(map(quoted, names), len(names))


def listed(texts: Iterable[str], count: int) -> str:
    """The first of `count` texts, and how many more there are."""
    first = ", ".join(islice(texts, NAMED))
    return f"{first} and {count - NAMED} more" if count > NAMED else first


def quoted(name: str) -> str:
    """A name for a message, in quotes and not too long."""
    return repr(name if len(name) <= LONGEST else f"{name[:LONGEST]}...")
