"""The directories of the splits below a root: train, val and test under any of their common names."""

import os
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import DataError
from data_shards.format.image_names import is_hidden

ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in ALIASES.items() for name in names}
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class SplitFolders:
    """`paths` of the splits, by the names that they have in a manifest; `notes` name what else is there."""

    paths: dict[str, Path]
    notes: tuple[str, ...]


def find_splits(root: Path) -> SplitFolders:
    """The split directories of ROOT, their names in any letter case.

    DataError: none is there; two are the same split, such as val/ and valid/.
    """
    by_split: dict[str, list[Path]] = {split: [] for split in ALIASES}
    others = []
    for path in sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)):
        split = SPLIT_OF.get(path.name.lower())
        by_split[split].append(path) if split else others.append(path.name)
    notes = [note for split, paths in by_split.items() for note in _only_one(split, paths)]
    paths = {split: paths[0] for split, paths in by_split.items() if paths}
    if not paths:
        raise DataError(_none(root, others))
    if others:
        notes.append(f"{root}: {_listed(others)} not used, as no split is called so")
    return SplitFolders(paths=paths, notes=(*notes, *_same(paths)))


def one_split(root: Path, split: str) -> SplitFolders:
    """ROOT itself as one split; DataError when all that it holds are directories of splits."""
    names = [path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)]
    if names and all(name.lower() in SPLIT_OF for name in names):
        raise DataError(
            f"{root}: holds {_listed(sorted(names))}, which are splits; use --source folder, no --as-split"
        )
    return SplitFolders(paths={split: root}, notes=())


def _only_one(split: str, paths: list[Path]) -> list[str]:
    """Leave one directory of a split in `paths`: the notes on its name; DataError when there are two."""
    paths.sort(key=lambda path: (os.path.islink(path), path.name))  # a directory before a link to it
    first = paths[:1]
    if others := [path for path in paths if path.resolve() != first[0].resolve()]:
        names = f"{first[0].name}/ and {others[0].name}/"
        raise DataError(
            f"{first[0].parent}: {names} are both the split {split}; rename one or move it elsewhere"
        )
    notes = [f"{path}: not used, a link to {first[0].name}/" for path in paths[1:]]
    notes += [f"{path}: used as the split {split}" for path in first if path.name != split]
    paths[:] = first
    return notes


def _same(paths: dict[str, Path]) -> list[str]:
    """A note for every split that is a link to the directory of another."""
    seen: dict[Path, str] = {}
    notes = []
    for split, path in paths.items():
        if (before := seen.setdefault(path.resolve(), split)) != split:
            notes.append(f"{path}: is the same directory as {paths[before]}; both splits have its images")
    return notes


def _none(root: Path, others: list[str]) -> str:
    text = f"{root}: holds none of {', '.join(split + '/' for split in ALIASES)}"
    inside = [name for name in others if any(path.is_dir() for path in _splits_in(root / name))]
    if inside:
        return f"{text}, but {inside[0]}/ does; pass --directory {root / inside[0]}"
    there = f" (it holds {_listed(others)})" if others else ""
    one = "of a folder of classes without splits: --as-split train"
    return f"{text}{there}; --directory names their parent ({one})"


def _splits_in(directory: Path) -> list[Path]:
    return [directory / name for name in SPLIT_OF]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{name}/" for name in names[:SHOWN]) + more
