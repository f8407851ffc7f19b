"""COCO's instances, or any data set of its layout: a JSON a split, and a folder or an archive of its images.

    ROOT/annotations/instances_{train,val}2017.json    or in ROOT, or in ROOT/annotations_trainval2017.zip
    ROOT/{train,val}2017/ or ROOT/images/{train,val}2017/, or {train,val}2017.zip, read without unpacking

The name after `instances_` is that of the images, and without its digits that of the split. See "Microsoft
COCO: Common Objects in Context" (Lin et al., ECCV 2014). Labels are the places of the categories in the file,
which may have ids with gaps; the manifest keeps the ids. Rules of what is left out are mmdetection's.

Legend: H, W height and width of an image in pixels; N images.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.codecs.objects import checked_object, integer, numbers
from data_shards.errors import DataError
from data_shards.format.classes import differences, shown
from data_shards.format.fields import IMAGE_AND_OBJECTS
from data_shards.format.image_names import is_hidden
from data_shards.format.samples import BadSourceError, Samples, Source
from data_shards.image.pixels import exif_orientation, image_size
from data_shards.pack.sources.coco_file import CocoFile, CocoImage, listed_in, read_coco
from data_shards.pack.sources.file_samples import FileSamples
from data_shards.pack.sources.folders import needed
from data_shards.pack.sources.path_list import PathList
from data_shards.pack.sources.split_folders import SPLIT_OF
from data_shards.pack.sources.zipped import ZipSamples, zip_samples

PREFIX = "instances_"
MIN_SIDE = 32  # pixels of a training image
TURNED = (5, 6, 7, 8)  # orientations of EXIF that swap height and width
FIX = "correct or remove it in the file"


@dataclass(frozen=True)
class CocoSamples:
    """The `images` of the file `listed`, their pictures in `files`, and the JSON texts of their annotations.

    `labels` are those of the categories by their ids; a category without one is not wanted.
    """

    listed: str
    images: tuple[CocoImage, ...]
    files: FileSamples | ZipSamples
    annotations: tuple[str, ...]
    labels: Mapping[int, int | None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        image = self.images[i]
        where = f"{self.listed}: image {image.id}"
        if image.problem:
            raise BadSourceError(f"{where} {image.problem}; {FIX}")
        try:
            body = self.files[i]["image"]
        except BadSourceError as error:
            raise BadSourceError(f"{error}; {where} names it: get it again, or remove it there") from error
        try:
            _check_size(image, body)
            objects = [self._object(value, image) for value in json.loads(self.annotations[i])]
        except DataError as error:
            raise BadSourceError(f"{where}{error}") from error
        record = {"image_id": image.id, "file_name": image.name, "height": image.height, "width": image.width}
        return {"image": body, "annotations": record | {"objects": [one for one in objects if one]}}

    def _object(self, value: Mapping[str, Any], image: CocoImage) -> dict[str, Any] | None:
        """The object of an annotation; None for a category that is not wanted."""
        try:
            return _object(value, image, self.labels)
        except DataError as error:
            raise DataError(f", annotation {value.get('id')!r}: {error}; {FIX}") from error

    def select(self, rows: np.ndarray) -> "CocoSamples":
        """The samples at `rows`."""
        images = tuple(self.images[row] for row in rows.tolist())
        annotations = tuple(self.annotations[row] for row in rows.tolist())
        return replace(self, images=images, files=self.files.select(rows), annotations=annotations)

    def describe(self, i: int) -> str:
        """The path of the picture."""
        return self.files.describe(i)

    def label(self, i: int) -> int:
        """-1: an image has a class for each object."""
        return -1

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of the picture and of its annotations; 0 for a missing picture."""
        files = self.files.sizes()
        return np.where(files > 0, files + np.array([len(text) for text in self.annotations]), 0)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all that the file states; what is in the pictures is not read."""
        sha = hashlib.sha256(repr(("coco 1", self.images, dict(self.labels))).encode())
        for text in self.annotations:
            sha.update(text.encode("utf-8", "surrogatepass"))
        return sha.hexdigest()


def _check_size(image: CocoImage, body: bytes) -> None:
    """DataError unless a picture has the size that the file states."""
    try:
        height, width = image_size(body)
    except DataError as error:
        raise DataError(f": {error}") from error
    if (height, width) == (image.height, image.width):
        return
    text = f" has {image.height} x {image.width} pixels there, and its picture {height} x {width}"
    if (width, height) == (image.height, image.width) and (turn := exif_orientation(body)) in TURNED:
        fix = "turn the pixels and remove the tag"
        raise DataError(
            f"{text}, which EXIF orientation {turn} would turn, but pictures are not turned: {fix}"
        )
    raise DataError(f"{text} (height x width); correct the file, or get the picture again")


def _object(
    value: Mapping[str, Any], image: CocoImage, labels: Mapping[int, int | None]
) -> dict[str, Any] | None:
    if missing := [key for key in ("id", "category_id", "bbox", "area") if key not in value]:
        raise DataError(f"it has no {missing[0]}")
    category = integer(value["category_id"], "category_id")
    if category not in labels:
        raise DataError(f"category_id {category} is none of the categories")
    if (label := labels[category]) is None:
        return None
    x, y, width, height = numbers(value["bbox"], "bbox", 4)
    if width < 0 or height < 0:
        raise DataError(f"bbox {value['bbox']} has a negative side; it is x, y, width, height")
    found = {"id": value["id"], "label": label, "box": [x, y, x + width, y + height]}
    found |= {key: value[key] for key in ("area", "iscrowd", "segmentation", "ignore") if key in value}
    checked_object(found, image.height, image.width)
    return found


def coco(
    directory: str | Path | None,
    *,
    classes: Sequence[str] = (),
    splits: Collection[str] | None = None,
    min_side: int = MIN_SIDE,
    keep_empty: bool = False,
) -> Source:
    """The images and instances of COCO in `directory`.

    Args:
        directory: that of the folder `annotations`.
        classes: the names of the categories that are wanted; by default all of them.
        splits: those to list, by default all.
        min_side: training images of a shorter side are left out.
        keep_empty: keep training images without an annotation of a wanted category.

    Raises:
        DataError: no JSON, one that is none as a whole, other categories in another split, no images.
    """
    what = "the directory of annotations/instances_train2017.json and of train2017/ or train2017.zip"
    root = needed(directory, "coco", what)
    found, notes = _files(root)
    if missing := [split for split in splits or () if split not in found]:
        raise DataError(f"--splits {missing[0]}: {root} holds {', '.join(found) or 'no instances'}")
    wanted = {split: path for split, path in found.items() if splits is None or split in splits}
    if not wanted:
        raise DataError(f"{root}: holds no annotations/{PREFIX}train2017.json; --directory must be {what}")
    files = {split: read_coco(path) for split, path in wanted.items()}
    ids = _same_categories(wanted, files, classes)
    samples: dict[str, Samples] = {}
    for split, path in wanted.items():
        limits = (min_side, keep_empty) if split == "train" else (0, True)
        kept, why = _kept(files[split], ids, *limits)
        notes += [f"{path}: {note}" for note in why]
        samples[split] = _samples(root, path, files[split], kept, ids)
    names = tuple(files[next(iter(files))].categories[number] for number in ids)
    description = f"instances of COCO's layout, {len(ids)} categories"
    return Source("coco", description, names, samples, tuple(notes), IMAGE_AND_OBJECTS, ids)


def _files(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The JSON of every split, and notes on those that are none."""
    folder = root / "annotations" if (root / "annotations").is_dir() else root
    found: dict[str, Path] = {}
    notes = []
    paths = sorted(folder.glob(f"{PREFIX}*.json"))
    for archive in [] if paths else sorted(root.glob("annotations*.zip")):
        paths += listed_in(archive, f"{PREFIX}*.json")
    for path in paths:
        split = SPLIT_OF.get(_images_of(path).rstrip("0123456789").rstrip("_-").lower())
        if is_hidden(path.name) or split is None:
            notes.append(f"{path}: not used, as no split is called so")
        elif (before := found.setdefault(split, path)) != path:
            text = f"{before} and {path.name} are both the split {split}"
            raise DataError(f"{text}; move one of them elsewhere")
    return {split: found[split] for split in ("train", "val", "test") if split in found}, notes


def _images_of(path: Path) -> str:
    """The name of the folder of a file's images."""
    return path.stem.removeprefix(PREFIX)


def _same_categories(
    paths: Mapping[str, Path], files: Mapping[str, CocoFile], wanted: Sequence[str]
) -> tuple[int, ...]:
    """The ids of the wanted categories in the order of the files; DataError where these differ."""
    (first, one), *others = files.items()
    for split, other in others:
        if list(other.categories.items()) != list(one.categories.items()):
            what = (
                differences(tuple(other.categories.values()), tuple(one.categories.values())) or "other ids"
            )
            raise DataError(f"{paths[split]} must have the categories of {paths[first].name}: {what}")
    names = list(one.categories.values())
    if unknown := [name for name in wanted if name not in names]:
        raise DataError(f"--classes: {paths[first]} has no category {shown(unknown)}, but {shown(names)}")
    return tuple(number for number, name in one.categories.items() if not wanted or name in wanted)


def _kept(file: CocoFile, ids: Sequence[int], min_side: int, keep_empty: bool) -> tuple[list[int], list[str]]:
    """The images that are packed, and notes that count what is not."""
    wanted = frozenset(ids)
    small = {
        i
        for i, image in enumerate(file.images)
        if not image.problem and min(image.height, image.width) < min_side
    }
    empty = {i for i, found in enumerate(file.category_sets) if not keep_empty and not found & wanted} - small
    notes = []
    if small:
        notes.append(f"left out {len(small)} training images with a side below {min_side} pixels")
    if empty:
        notes.append(f"left out {len(empty)} training images without an annotation of a wanted category")
    if file.orphans:
        notes.append(f"skipped {file.orphans} annotations of images that are not in its list of images")
    return [i for i in range(len(file.images)) if i not in small and i not in empty], notes


def _samples(root: Path, path: Path, file: CocoFile, kept: list[int], ids: Sequence[int]) -> CocoSamples:
    images = tuple(file.images[i] for i in kept)
    labels = {number: ids.index(number) if number in ids else None for number in file.categories}
    listed = f"{path.parent.name}/{path.name}" if path.parent != root else path.name
    files = _pictures(root, path, PathList.of(image.name for image in images))
    return CocoSamples(listed, images, files, tuple(file.annotations[i] for i in kept), labels)


def _pictures(root: Path, path: Path, names: PathList) -> FileSamples | ZipSamples:
    """The pictures of a file, in a folder or in an archive; DataError where neither is there."""
    name, labels = _images_of(path), np.zeros(len(names), dtype=np.uint32)
    for place in (root / name, root / "images" / name):
        if place.is_dir():
            return FileSamples(place, names, labels)
        if (archive := place.with_name(f"{name}.zip")).is_file():
            return zip_samples(archive, path, name, names, labels)
    raise DataError(f"{root}: holds neither {name}/ nor {name}.zip, the images of {path.name}; add them")
