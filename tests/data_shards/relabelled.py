"""A split again with another list of classes, to whose places the labels move by name."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_shards.format.index import Manifest
from tests.data_shards.tiny_splits import bodies_of, write_split


def relabelled(
    split: Path,
    out: Path,
    classes: Sequence[str],
    *,
    called: Mapping[str, str] | None = None,
    images: Mapping[str, int] | None = None,
) -> Path:
    """Write the images of a split whose classes are in `classes`, in the split's order.

    Args:
        split: with a manifest.
        out: the directory to make.
        classes: the names, in the order of the new labels.
        called: the new name of a class, where it is not the old one.
        images: the most images of a class, where not all are taken.
    """
    old = Manifest.load(split)
    names = [(called or {}).get(name, name) for name in old.classes]
    left = dict.fromkeys(classes, old.samples) | dict(images or {})
    bodies, labels = [], []
    for body, label in zip(*bodies_of(split), strict=True):
        name = names[label]
        if left.get(name, 0) > 0:
            left[name] -= 1
            bodies.append(body)
            labels.append(list(classes).index(name))
    write_split(out, bodies, labels, per_shard=32)
    replace(Manifest.load(out), split=old.split, classes=tuple(classes)).save(out)
    return out
