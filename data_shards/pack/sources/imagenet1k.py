"""ImageNet-1K as it is downloaded: the tars of image-net.org, or the directory of Kaggle's competition.

    DIRECTORY/ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar        read without unpacking
    DIRECTORY/ILSVRC/Data/CLS-LOC/{train/WNID,val}/*.JPEG             or DIRECTORY is a folder above CLS-LOC

The images of val are in no folder of a class. Their classes are in DIRECTORY/LOC_val_solution.csv (Kaggle's)
or DIRECTORY/ILSVRC2012_devkit_t12.tar.gz (image-net.org's). Classes are the WNIDs, sorted.
"""

import csv
import io
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.format.image_names import is_hidden, is_image
from data_shards.format.samples import Samples, Source
from data_shards.pack.sources.class_tars import TarSamples, list_class_tars, list_images
from data_shards.pack.sources.file_samples import FileSamples, empty_classes
from data_shards.pack.sources.folders import image_folder, needed
from data_shards.pack.sources.path_list import PathList

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
CLS_LOC = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", ".")
SOLUTION, DEVKIT = "LOC_val_solution.csv", "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
ABOVE = 3  # folders above --directory where the list of classes may be: Kaggle's is above ILSVRC/Data/CLS-LOC
VAL_NAME = "ILSVRC2012_val_{:08d}"  # of image i, from 1


def imagenet(directory: str | Path | None, *, allow_empty: bool = False) -> Source:
    """ImageNet-1K from the tars of image-net.org, or from Kaggle's directory; see the module.

    A class of train without images is refused unless `allow_empty`. Images of val that the list of classes
    does not name are left out, and a note counts them.

    DataError: neither is there, a tar is damaged, val has no list of classes, or its list is none.
    """
    what = f"the directory of {TRAIN_TAR} and {VAL_TAR}, or of Kaggle's ILSVRC/Data/CLS-LOC"
    root = needed(directory, "imagenet", what)
    if (root / TRAIN_TAR).is_file():
        return _source(root, *_of_tars(root), "ImageNet-1K, tars", allow_empty)
    folder = next((root / name for name in CLS_LOC if (root / name / "train").is_dir()), None)
    if folder is None:
        raise DataError(
            f"{root}: holds neither {TRAIN_TAR} nor ILSVRC/Data/CLS-LOC/train; --directory must be {what}"
        )
    return _source(root, *_of_folders(root, folder), "ImageNet-1K, image files", allow_empty)


Classes = tuple[str, ...]


def _of_tars(root: Path) -> tuple[Classes, dict[str, Samples], list[str]]:
    of_class = list_class_tars(root / TRAIN_TAR)
    classes = tuple(of_class)
    members = [member for images in of_class.values() for member in images]
    labels = [label for label, images in enumerate(of_class.values()) for _ in images]
    splits: dict[str, Samples] = {"train": TarSamples.of(root / TRAIN_TAR, members, labels)}
    if not (root / VAL_TAR).is_file():
        return classes, splits, [f"{root}: no {VAL_TAR}: no split val"]
    images = list_images(root / VAL_TAR)
    kept, labels, notes = _labelled([image.name for image in images], classes, root)
    splits["val"] = TarSamples.of(root / VAL_TAR, [images[row] for row in kept], labels)
    return classes, splits, notes


def _of_folders(root: Path, folder: Path) -> tuple[Classes, dict[str, Samples], list[str]]:
    train = image_folder(folder, splits=["train"], allow_empty=True)
    splits: dict[str, Samples] = dict(train.splits)
    if not (folder / "val").is_dir():
        return train.classes, splits, [*train.notes, f"{folder}: no val/: no split val"]
    paths = (folder / "val").iterdir()
    names = sorted(path.name for path in paths if is_image(path.name) and not is_hidden(path.name))
    if not names:
        raise DataError(
            f"{folder}/val: holds no images; where they are in folders of classes: --source folder"
        )
    kept, labels, notes = _labelled(names, train.classes, root)
    listed = PathList.of(names[row] for row in kept)
    splits["val"] = FileSamples(folder / "val", listed, np.array(labels, dtype=np.uint32))
    return train.classes, splits, [*train.notes, *notes]


def _source(
    root: Path, classes: Classes, splits: dict[str, Samples], notes: list[str], text: str, allow_empty: bool
) -> Source:
    labels = {split: np.array(samples.labels) for split, samples in splits.items()}  # type: ignore[attr-defined]
    try:
        empty = empty_classes(classes, labels, defining="train", allow_empty=allow_empty)
    except DataError as error:
        raise DataError(f"{root}: {error}") from None
    return Source("imagenet", text, classes, splits, (*notes, *empty))


def _labelled(names: Iterable[str], classes: Classes, root: Path) -> tuple[list[int], list[int], list[str]]:
    """The rows of validation images whose class is known, their labels, and notes on the others."""
    place, wnids = _validation_classes(root)
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    if unknown := sorted(set(wnids.values()) - label_of.keys()):
        raise DataError(
            f"{place}: {unknown[0]} is no class of train, which has {len(classes)}; the two do not match"
        )
    rows, labels, missing = [], [], []
    for row, name in enumerate(names):
        wnid = wnids.get(name.rpartition(".")[0])
        if wnid is None:
            missing.append(name)
        else:
            rows.append(row)
            labels.append(label_of[wnid])
    if not rows:
        raise DataError(
            f"{place}: names none of the images of val, such as {missing[0]}; the two do not match"
        )
    return (
        rows,
        labels,
        [f"val: {len(missing)} images are not in {place.name}: {missing[0]}"] if missing else [],
    )


def _validation_classes(root: Path) -> tuple[Path, dict[str, str]]:
    """The file that lists the classes of val, and the WNID of each image by its name without suffix."""
    readers: Mapping[str, Callable[[Path], dict[str, str]]] = {SOLUTION: _read_solution, DEVKIT: _read_devkit}
    for folder in (root, *root.resolve().parents[:ABOVE]):
        for name, read in readers.items():
            if (folder / name).is_file():
                return folder / name, read(folder / name)
    raise DataError(
        f"{root}: val needs its list of classes beside it: {SOLUTION} or {DEVKIT}; or --splits train"
    )


def _read_solution(path: Path) -> dict[str, str]:
    """Kaggle's: ImageId, then WNID and box of each object; all objects of an image have one class."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot read it ({error}); get it again") from error
    found: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        words = row[1].split() if len(row) == 2 else []
        if not words:
            raise DataError(f"{path}: line {number} is not ImageId,WNID and a box: {','.join(row)[:80]!r}")
        found[row[0]] = words[0]
    return found


def _read_devkit(path: Path) -> dict[str, str]:
    """image-net.org's: a number a line for the images in order, and the WNIDs of the numbers in meta.mat."""
    from scipy.io import loadmat  # nothing else of this package needs it

    try:
        with tarfile.open(path) as tar:
            files = {}
            for member in tar:
                if name := next((name for name in (TRUTH, META) if member.name.endswith(name)), None):
                    body = tar.extractfile(member)
                    files[name] = body.read() if body else b""
        synsets = loadmat(io.BytesIO(files[META]), squeeze_me=True)["synsets"]
        wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
        numbers = [int(line) for line in files[TRUTH].split()]
        return {VAL_NAME.format(i): wnids[number] for i, number in enumerate(numbers, 1)}
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            f"{path}: is not the development kit, or is damaged ({error}); get it again"
        ) from error
