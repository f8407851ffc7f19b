"""ADE20K as the scene parsing benchmark has it, or any data set of its layout: a label image for each image.

    ROOT/images/{training,validation}/**/STEM.jpg
    ROOT/annotations/{training,validation}/**/STEM.png    gray of 8 bits: 0 is "other", class k is k + 1
    ROOT/objectInfo150.txt                                names of the classes, if it is there

See "Scene Parsing through ADE20K Dataset" (Zhou et al., CVPR 2017). The full ADE20K, whose labels are coded
in colours, is another data set. Labels are packed as ids: "other" becomes `VOID` (255), and k + 1 becomes k.
"""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.format.classes import shown
from data_shards.format.fields import IMAGE_AND_MASK
from data_shards.format.samples import BadSourceError, Samples, Source
from data_shards.image import png
from data_shards.image.annotations import VOID, check_same_size
from data_shards.image.label_image import PALETTE, decode_label_image
from data_shards.image.pixels import image_size
from data_shards.pack.sources.folders import needed
from data_shards.pack.sources.members import MemberFiles, MemberFolder, member_folders

FOLDERS = ("images", "annotations")  # of IMAGE_AND_MASK
UNPACKED = "ADEChallengeData2016"  # what the archive of the benchmark unpacks to
NAMES = "objectInfo150.txt"
NUM_CLASSES, MOST_CLASSES = 150, 254  # label 255 is no class
SCENE = re.compile(r"ADE_\w+\s+\S+")  # a line of sceneCategories.txt


@dataclass(frozen=True)
class ReducedLabels:
    """The samples of `files`, their labels reduced to ids of `num_classes` classes."""

    files: MemberFiles
    num_classes: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        found = self.files[i]
        try:
            mask = reduced_labels(found["mask"], self.num_classes)
        except DataError as error:
            raise BadSourceError(f"mask: {error}") from error
        try:
            check_same_size(mask, image_size(found["image"]))
        except DataError as error:
            raise BadSourceError(str(error)) from error
        return {"image": found["image"], "mask": mask}

    def select(self, rows: np.ndarray) -> "ReducedLabels":
        """The samples at `rows`."""
        return replace(self, files=self.files.select(rows))

    def describe(self, i: int) -> str:
        """The path of the image below the root."""
        return self.files.describe(i)

    def label(self, i: int) -> int:
        """-1: an image has a class for each pixel."""
        return -1

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of both files."""
        return self.files.sizes()

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the number of classes and of all paths; what is in the files is not read."""
        return hashlib.sha256(f"ade20k {self.num_classes} {self.files.digest}".encode()).hexdigest()


def reduced_labels(body: bytes, num_classes: int) -> np.ndarray:
    """The class ids of a label image of ADE20K: (H, W) uint8, `VOID` where its label is 0 or 255.

    DataError for a damaged file, a palette, 16 bits, colours, and labels beyond the classes.
    """
    labels = decode_label_image(body)
    if png.read_header(body).color == PALETTE:
        fix = "save its labels as gray, or pack it by --source members, whose ids are the indices"
        raise DataError(f"a PNG with a palette, where labels of ADE20K are gray of 8 bits; {fix}")
    if labels.dtype != np.uint8:
        raise DataError("a PNG of 16 bits, where labels of ADE20K are gray of 8 bits; save it with 8 bits")
    wrong = labels[(labels > num_classes) & (labels != VOID)]
    if len(wrong):
        text = f"label {int(wrong.max())}, where 0 is other and 1 ... {num_classes} are classes"
        raise DataError(f"{text}; correct it, or give the names of all classes by --classes")
    ids = np.arange(-1, 255).astype(np.uint8)  # (256,): what each label becomes; 0 becomes 255
    ids[VOID] = VOID
    return ids[labels]


def ade20k(
    directory: str | Path | None, *, classes: Path | None = None, splits: Collection[str] | None = None
) -> Source:
    """The images and label images of ADE20K in `directory`, or in ADEChallengeData2016 below it.

    The names of the classes are those in the file `classes`, otherwise those in objectInfo150.txt beside the
    folders, otherwise "class 0" to "class 149". DataError: a folder that is not there, an image without a
    label image, a label image without an image, names that cannot be read.
    """
    root = needed(directory, "ade20k", "the directory that holds images and annotations")
    root = root / UNPACKED if (root / UNPACKED).is_dir() else root
    members = [MemberFolder(field, place) for field, place in zip(IMAGE_AND_MASK, FOLDERS, strict=True)]
    names = class_names(root, classes)
    found = member_folders(root, members, classes=names, splits=splits)
    reduced: dict[str, Samples] = {}
    for split, files in found.splits.items():
        assert isinstance(files, MemberFiles)
        reduced[split] = ReducedLabels(files, len(names))
    description = f"images with ADE20K's labels of {len(names)} classes"
    return Source("ade20k", description, names, reduced, found.notes, IMAGE_AND_MASK)


def class_names(root: Path, given: Path | None) -> tuple[str, ...]:
    """The names of the classes, in the order of their labels; DataError for a file without them."""
    path = given or root / NAMES
    if given is None and not path.is_file():
        return tuple(f"class {number}" for number in range(NUM_CLASSES))
    try:
        rows = [row for row in path.read_text(encoding="utf-8-sig").splitlines() if row.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"--classes {path}: cannot read it ({error})") from error
    if rows and SCENE.fullmatch(rows[0].strip()):
        fix = f"pass {NAMES}, or a file with the name of a class a line"
        raise DataError(f"--classes {path}: it names the scenes of images, not classes; {fix}")
    names = _of_table(rows, path) if rows and rows[0].startswith("Idx") else [row.strip() for row in rows]
    if not 1 <= len(names) <= MOST_CLASSES:
        raise DataError(f"--classes {path}: {len(names)} names; there are 1 ... {MOST_CLASSES} classes")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise DataError(f"--classes {path}: {shown(twice)} stands for several labels")
    return tuple(names)


def _of_table(rows: Sequence[str], path: Path) -> list[str]:
    """The names in a table of tabs or commas whose first column numbers them and whose last has the names.

    Of synonyms it is the first, or all where the first would name two classes.
    """
    cells = list(csv.reader(rows, delimiter="\t" if "\t" in rows[0] else ","))
    for number, row in enumerate(cells[1:], start=1):
        if row[0].strip() != str(number) or not row[-1].strip():
            raise DataError(f"--classes {path}: row {number} is {shown(row)}; it must be {number}, ..., name")
    names = [row[-1].strip() for row in cells[1:]]
    first = [re.split("[,;]", name)[0].strip() for name in names]
    return first if len(set(first)) == len(first) else names
