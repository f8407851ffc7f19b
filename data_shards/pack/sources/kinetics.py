"""Kinetics, or any videos with a class each: lists of "path label", or a folder for each class.

    ROOT/kinetics400_{train,val}_list_videos.txt   a line a video: its path, a space or a comma, its label
    ROOT/[DIRECTORY/]PATH                          DIRECTORY: any whose name says the split, or `videos`
or
    ROOT/{train,val}/CLASS/**/*.mp4                (.mkv .webm .avi ...), without lists

See "The Kinetics Human Action Video Dataset" (Kay et al., arXiv:1705.06950). Its links die, so that lists
name videos which nobody has any more: they are counted before packing, and bad_sources.tsv lists them.

Legend: N videos of a split.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.format.image_names import is_hidden
from data_shards.format.samples import Source
from data_shards.format.video_names import is_video
from data_shards.pack.sources.file_samples import FileSamples
from data_shards.pack.sources.folders import labelled_folders, needed
from data_shards.pack.sources.path_list import PathList
from data_shards.pack.sources.split_folders import SPLIT_OF
from data_shards.pack.sources.video_files import missing_note, video_source
from data_shards.pack.sources.walking import VIDEOS
from data_shards.video.prepare import VideoRecipe

NAME = "kinetics"
DEFAULT = VideoRecipe(short_side=256)  # as its authors' copies are
PROBED = 100  # paths of a list by which the directory of its videos is told
WORD = re.compile(r"[a-z]+")


def kinetics(
    directory: str | Path | None,
    *,
    classes: Sequence[str] = (),
    splits: Collection[str] | None = None,
    recipe: VideoRecipe = DEFAULT,
) -> Source:
    """The videos of lists, or of folders of classes, below `directory`.

    Args:
        directory: see above.
        classes: the names of the labels of lists; by default those of the folders of the videos, if each
            label has one folder, otherwise `class 0`, `class 1` ...
        splits: those to pack, by default all.
        recipe: of each video; by default it is encoded again with a short side of 256 pixels.

    Raises:
        DataError: no such directory, neither lists nor folders, a line that is none, no video of a list.
    """
    what = "the directory that holds a list of videos for each split, or train/CLASS/*.mp4"
    root = needed(directory, NAME, what)
    if not (lists := lists_of(root, (".txt", ".csv"))):
        return _of_folders(root, classes, splits, recipe)
    if missing := [split for split in splits or () if split not in lists]:
        raise DataError(f"--splits {missing[0]}: {root} holds lists of {', '.join(lists)}")
    wanted = {split: path for split, path in lists.items() if splits is None or split in splits}
    found = {split: read_list(path) for split, path in wanted.items()}
    names = tuple(classes) or _classes([line for lines in found.values() for line in lines])
    samples, notes = {}, []
    for split, path in wanted.items():
        samples[split] = _files(root, split, path, found[split], len(names))
        notes += missing_note(str(path), samples[split])
    return video_source(NAME, names, samples, recipe, notes)


def _of_folders(
    root: Path, classes: Sequence[str], splits: Collection[str] | None, recipe: VideoRecipe
) -> Source:
    if classes:
        raise DataError(f"--classes is for lists; {root} has none, and its folders are the classes")
    folders = labelled_folders(root, splits=splits, kind=VIDEOS)
    return video_source(NAME, folders.classes, folders.samples, recipe, folders.notes)


def lists_of(root: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """The file of every split, in ROOT: one with such a suffix whose name has a word for the split."""
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        split = split_in(path.stem)
        if split is None or path.suffix.lower() not in suffixes or is_hidden(path.name):
            continue
        if (before := found.setdefault(split, path)) != path:
            text = f"{before} and {path.name} are both a list of the split {split}"
            raise DataError(f"{text}; move one of them elsewhere")
    return found


def split_in(name: str) -> str | None:
    """The split that a name has a word for, such as train of k400_train_list; None where there is none."""
    return next((SPLIT_OF[word] for word in WORD.findall(name.lower()) if word in SPLIT_OF), None)


def read_list(path: Path) -> list[tuple[str, int]]:
    """The path and the label of every line; DataError, with the number of the line, for any other."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot read it ({error.strerror})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(.+?)[\s,]+(\d{1,9})\s*", line)
        if not match or not is_video(match[1]):
            text = f"{path}: line {number} is {line.strip()[:80]!r}, not a video file and its label"
            hint = f"; files of {path.name} must end in .mp4, .mkv ..., and lists of frames are not read"
            raise DataError(text + hint)
        found.append((match[1].removeprefix("./"), int(match[2])))
    if not found:
        raise DataError(f"{path}: has no line; delete it, or make the list again")
    return found


def _classes(lines: list[tuple[str, int]]) -> tuple[str, ...]:
    """The names of the folders where each label has one of its own, otherwise numbers."""
    folders: dict[int, set[str]] = {}
    for path, label in lines:
        folders.setdefault(label, set()).add(path.rpartition("/")[0].rpartition("/")[2])
    count = max(folders) + 1
    names = [next(iter(folders[label])) for label in sorted(folders) if len(folders[label]) == 1]
    if len(names) == count == len(set(names)) and all(names):
        return tuple(names)
    return tuple(f"class {label}" for label in range(count))


def _files(root: Path, split: str, path: Path, lines: list[tuple[str, int]], classes: int) -> FileSamples:
    """The videos of a list; DataError where a label is beyond the classes, or no video is there."""
    labels = np.array([label for _, label in lines], dtype=np.uint32)
    if labels.max() >= classes:
        line = lines[int(np.argmax(labels >= classes))]
        raise DataError(f"{path}: {line[0]} has label {line[1]}; --classes names {classes}, from 0 on")
    names = [name for name, _ in lines]
    return FileSamples(
        root, PathList.of(f"{_directory(root, split, path, names)}{name}" for name in names), labels
    )


def _directory(root: Path, split: str, path: Path, names: list[str]) -> str:
    """The directory of the videos below ROOT, "" or with "/" at its end: that which has most of some."""
    inside = sorted(one.name for one in root.iterdir() if one.is_dir() and not is_hidden(one.name))
    places = ["", *(f"{name}/" for name in inside if name == "videos" or split_in(name) == split)]
    probed = names[:: -(-len(names) // PROBED)]
    counts = [sum((root / place / name).is_file() for name in probed) for place in places]
    if not max(counts):
        shown = ", ".join(str(root / place) for place in places)
        raise DataError(f"{path}: none of {len(probed)} of its videos, such as {probed[0]}, is below {shown}")
    return places[counts.index(max(counts))]
