"""Something-Something v2: JSON files of labels, and a folder of videos named by their ids.

    ROOT/something-something-v2-{labels,train,validation}.json   or ROOT/labels/{labels,train,validation}.json
    ROOT/20bn-something-something-v2/ID.webm (.mp4 ...)          or in ROOT/videos, or in ROOT

A video has the class of its template, "Moving [something] up", which the file of labels names without the
brackets. See "The 'something something' video database" (Goyal et al., ICCV 2017, arXiv:1706.04261). The
videos of the test split have no published labels, and are left out.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.format.index import read_json
from data_shards.format.samples import Source
from data_shards.format.video_names import VIDEO_SUFFIXES
from data_shards.pack.sources.file_samples import FileSamples
from data_shards.pack.sources.folders import needed
from data_shards.pack.sources.kinetics import lists_of
from data_shards.pack.sources.path_list import PathList
from data_shards.pack.sources.video_files import missing_note, video_source
from data_shards.video.prepare import VideoRecipe

NAME = "something-something"
DEFAULT = VideoRecipe()  # copied: its clips take frames of the complete video, so key frames do not matter
FOLDERS = ("20bn-something-something-v2", "videos", "")
PROBED = 100
WITHOUT_BRACKETS = str.maketrans("", "", "[]")


def something_something(
    directory: str | Path | None,
    *,
    splits: Collection[str] | None = None,
    recipe: VideoRecipe = DEFAULT,
) -> Source:
    """The labelled videos below `directory`.

    Args:
        directory: see above.
        splits: those to pack, by default train and val.
        recipe: of each video; by default the packets of the WebM file are copied into an MP4.

    Raises:
        DataError: no such directory, no JSON of labels, an entry that is none, no video.
    """
    root = needed(directory, NAME, "the directory of something-something-v2-labels.json")
    folder = root / "labels" if (root / "labels").is_dir() else root
    classes = _classes(folder)
    lists = {split: path for split, path in lists_of(folder, (".json",)).items() if split != "test"}
    if missing := [split for split in splits or () if split not in lists]:
        raise DataError(f"--splits {missing[0]}: {folder} holds labels of {', '.join(lists) or 'no split'}")
    wanted = {split: path for split, path in lists.items() if splits is None or split in splits}
    if not wanted:
        raise DataError(f"{folder}: holds no something-something-v2-train.json, nor train.json")
    samples, notes = {}, []
    for split, path in wanted.items():
        samples[split] = _files(root, path, classes)
        notes += missing_note(str(path), samples[split])
    return video_source(NAME, tuple(classes), samples, recipe, notes)


def _classes(folder: Path) -> dict[str, int]:
    """The label of every template without brackets, in the order of the labels."""
    paths = sorted(folder.glob("*labels.json"))
    if not paths:
        raise DataError(f"{folder}: holds no something-something-v2-labels.json, nor labels.json")
    value = read_json(paths[0])
    try:
        found = {str(name): int(number) for name, number in value.items()}
    except (AttributeError, TypeError, ValueError):
        found = {}
    if not found or sorted(found.values()) != list(range(len(found))):
        raise DataError(
            f'{paths[0]}: must be a JSON object {{"TEMPLATE": "NUMBER", ...}} with numbers from 0 on'
        )
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _files(root: Path, path: Path, classes: Mapping[str, int]) -> FileSamples:
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: must be a JSON list of videos, each with an id and a template")
    found = [_video(entry, number, path, classes) for number, entry in enumerate(entries)]
    ids, labels = [one for one, _ in found], np.array([label for _, label in found], dtype=np.uint32)
    place = _place(root, path, ids)
    return FileSamples(root, PathList.of(place % one for one in ids), labels)


def _video(entry: Any, number: int, path: Path, classes: Mapping[str, int]) -> tuple[str, int]:
    """The id and the label of a video."""
    try:
        one, template = str(entry["id"]), str(entry["template"]).translate(WITHOUT_BRACKETS)
    except (KeyError, TypeError):
        raise DataError(f"{path}: entry {number} has no id or no template: {str(entry)[:80]}") from None
    if not one.isdigit():
        raise DataError(f"{path}: entry {number} has the id {one[:40]!r}, which is no number")
    if template not in classes:
        raise DataError(f"{path}: video {one} has the template {template!r}, which the file of labels lacks")
    return one, classes[template]


def _place(root: Path, path: Path, ids: list[str]) -> str:
    """The path of a video below ROOT with %s for its id: where most of some videos are."""
    folders = [f"{folder}/" if folder else "" for folder in FOLDERS if (root / folder).is_dir()]
    places = [f"{folder}%s.{suffix}" for folder in folders for suffix in ("webm", *VIDEO_SUFFIXES)]
    probed = ids[:: -(-len(ids) // PROBED)]
    counts = [sum((root / (place % one)).is_file() for one in probed) for place in places]
    if not max(counts):
        shown = ", ".join(str(root / folder) for folder in folders)
        raise DataError(
            f"{path}: none of {len(probed)} of its videos, such as {probed[0]}.webm, is in {shown}"
        )
    return places[counts.index(max(counts))]
