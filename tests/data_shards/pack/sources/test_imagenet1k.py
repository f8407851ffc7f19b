"""ImageNet-1K as it is downloaded, small: tars of class tars, Kaggle's directory, both lists of classes."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.samples import BadSourceError, Source
from data_shards.pack.sources.imagenet1k import DEVKIT, SOLUTION, TRAIN_TAR, VAL_NAME, VAL_TAR, imagenet
from data_shards.pack.write import pack
from data_shards.verify.verify import verify
from tests.data_shards.image_folders import jpeg, samples_in

WNIDS = ("n02", "n01", "n03")  # in an order that is not theirs, as in the tar
TRAIN = {"n01": (0, 1, 2), "n02": (3, 4), "n03": (5, 6, 7, 8)}  # numbers of the images
VAL = ("n03", "n01", "n01", "n02", "n03")  # the classes of images 1 to 5, which are numbers 101 to 105
LABELS = {"n01": 0, "n02": 1, "n03": 2}


def tar_of(files: Mapping[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar with a folder, the files, and one that is hidden."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, body in {**files, "._hidden.JPEG": b"x", "notes.txt": b"x"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


def train_files(wnid: str) -> dict[str, bytes]:
    return {f"{wnid}_{number}.JPEG": jpeg(number) for number in TRAIN[wnid]}


def val_files() -> dict[str, bytes]:
    return {f"{VAL_NAME.format(i)}.JPEG": jpeg(100 + i) for i in range(len(VAL), 0, -1)}


def make_tars(root: Path) -> Path:
    (root / TRAIN_TAR).write_bytes(tar_of({f"{wnid}.tar": tar_of(train_files(wnid)) for wnid in WNIDS}))
    (root / VAL_TAR).write_bytes(tar_of(val_files(), tarfile.PAX_FORMAT))
    return root


def make_kaggle(root: Path) -> Path:
    folders = {f"train/{wnid}": train_files(wnid) for wnid in WNIDS} | {"val": val_files()}
    for folder, files in folders.items():
        path = root / "ILSVRC/Data/CLS-LOC" / folder
        path.mkdir(parents=True)
        for name, body in files.items():
            (path / name).write_bytes(body)
    return root


def make_solution(root: Path) -> None:
    rows = [f"{VAL_NAME.format(i)},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for i, wnid in enumerate(VAL, 1)]
    (root / SOLUTION).write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")


def make_devkit(root: Path) -> None:
    """Its numbers count the classes in the order of WNIDS, and go on with synsets above them."""
    from scipy.io import savemat

    synsets = np.zeros(4, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    for number, wnid in enumerate([*WNIDS, "n99"], 1):
        synsets[number - 1] = (number, wnid, 0 if wnid in WNIDS else 3)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{WNIDS.index(wnid) + 1}\n" for wnid in VAL).encode()
    top = "ILSVRC2012_devkit_t12/data/"
    files = {f"{top}ILSVRC2012_validation_ground_truth.txt": truth, f"{top}meta.mat": meta.getvalue()}
    (root / DEVKIT).write_bytes(gzip.compress(tar_of(files)))


def assert_is_imagenet(source: Source) -> None:
    assert source.classes == ("n01", "n02", "n03")
    train, val = source.splits["train"], source.splits["val"]
    wanted = [(jpeg(number), LABELS[wnid]) for wnid in sorted(TRAIN) for number in TRAIN[wnid]]
    assert [tuple(train[i].values()) for i in range(len(train))] == wanted
    wanted = [(jpeg(100 + i), LABELS[wnid]) for i, wnid in enumerate(VAL, 1)]
    assert [tuple(val[i].values()) for i in range(len(val))] == wanted
    assert train.sizes().tolist() == [len(train[i]["image"]) for i in range(len(train))]
    assert [train.label(i) for i in range(9)] == [0, 0, 0, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("listed", [make_solution, make_devkit])
@pytest.mark.parametrize("make", [make_tars, make_kaggle])
def test_all_layouts_are_one_data_set(make: object, listed: object, tmp_path: Path) -> None:
    listed(make(tmp_path))  # type: ignore[operator]
    source = imagenet(tmp_path)
    assert_is_imagenet(source)
    assert source.name == "imagenet"


@pytest.mark.parametrize("below", ["ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_list_is_found_above_the_images(below: str, tmp_path: Path) -> None:
    make_solution(make_kaggle(tmp_path))
    assert_is_imagenet(imagenet(tmp_path / below))


def test_tars_are_packed_by_several_processes(tmp_path: Path) -> None:
    make_solution(make_tars(tmp_path))
    source = imagenet(tmp_path)
    for split in ("train", "val"):
        pack(source, split, tmp_path / split, samples_per_shard=2, workers=2, seed=3)
        assert verify(tmp_path / split, decode=True).ok
        samples = source.splits[split]
        assert sorted(samples_in(tmp_path / split)) == sorted(
            (samples[i]["image"], samples[i]["label"]) for i in range(len(samples))
        )


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    make_tars(tmp_path)
    with pytest.raises(DataError, match=rf"val needs its list of classes beside it: {SOLUTION} or {DEVKIT}"):
        imagenet(tmp_path)
    (tmp_path / VAL_TAR).unlink()
    source = imagenet(tmp_path)
    assert list(source.splits) == ["train"]
    assert source.notes == (f"{tmp_path}: no {VAL_TAR}: no split val",)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds neither ILSVRC2012_img_train\.tar nor ILSVRC/Data"):
        imagenet(tmp_path / "empty")


def test_images_that_the_list_does_not_name_are_left_out(tmp_path: Path) -> None:
    make_solution(make_kaggle(tmp_path))
    lines = (tmp_path / SOLUTION).read_text().splitlines()
    (tmp_path / SOLUTION).write_text("\n".join(lines[:-2]) + "\n")  # without images 1 and 2
    source = imagenet(tmp_path)
    assert len(source.splits["val"]) == 3
    assert source.notes == (f"val: 2 images are not in {SOLUTION}: {VAL_NAME.format(1)}.JPEG",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ImageId,PredictionString\nx,n77 1 2 3 4\n", "n77 is no class of train, which has 3"),
        (
            "ImageId,PredictionString\nx,n01 1 2 3 4\n",
            "names none of the images of val, such as ILSVRC2012_val_0",
        ),
        ("ImageId,PredictionString\nx\n", "line 2 is not ImageId,WNID and a box: 'x'"),
        ("ImageId,PredictionString\nx,\n", "line 2 is not ImageId,WNID and a box: 'x,'"),
        ("", "names none of the images of val"),
        ("\udcff", "cannot read it"),
    ],
)
@pytest.mark.parametrize("make", [make_tars, make_kaggle])
def test_a_list_that_is_none_is_one_error(make: object, text: str, message: str, tmp_path: Path) -> None:
    make(tmp_path)  # type: ignore[operator]
    (tmp_path / SOLUTION).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        imagenet(tmp_path)


@pytest.mark.parametrize(
    "body",
    [b"", b"no gzip", gzip.compress(tar_of({})), gzip.compress(b"x" * 600)],
    ids=["empty", "no-gzip", "empty-tar", "no-tar"],  # the bytes contain the time, and name no test
)
def test_a_development_kit_that_is_none_is_one_error(body: bytes, tmp_path: Path) -> None:
    make_tars(tmp_path)
    (tmp_path / DEVKIT).write_bytes(body)
    with pytest.raises(DataError, match="is not the development kit, or is damaged"):
        imagenet(tmp_path)


@pytest.mark.parametrize("name", [TRAIN_TAR, VAL_TAR])
@pytest.mark.parametrize("damage", ["cut", "gzip", "text", "empty"])
def test_a_damaged_tar_is_one_error(name: str, damage: str, tmp_path: Path) -> None:
    make_solution(make_tars(tmp_path))
    body = (tmp_path / name).read_bytes()
    at = body.rindex(b"_8.JPEG" if name == TRAIN_TAR else b"_00000001.JPEG") + 600  # inside of the last image
    wrong = {"cut": body[:at], "gzip": gzip.compress(body), "text": b"<html>" * 200, "empty": b""}
    (tmp_path / name).write_bytes(wrong[damage])
    with pytest.raises(DataError, match=rf"{name}: (is no uncompressed tar|holds no CLASS\.tar)"):
        imagenet(tmp_path)


def test_a_tar_that_shrinks_while_it_is_packed_has_bad_samples(tmp_path: Path) -> None:
    make_solution(make_tars(tmp_path))
    samples = imagenet(tmp_path).splits["val"]
    (tmp_path / VAL_TAR).write_bytes(b"")
    with pytest.raises(BadSourceError, match="the tar ends before it"):
        samples[0]


def test_a_class_without_images_is_refused_unless_allowed(tmp_path: Path) -> None:
    make_solution(make_tars(tmp_path))
    tars = {f"{wnid}.tar": tar_of(train_files(wnid)) for wnid in WNIDS} | {"n00.tar": tar_of({})}
    (tmp_path / TRAIN_TAR).write_bytes(tar_of(tars))
    with pytest.raises(DataError, match="train: 1 of 4 classes have no images: n00"):
        imagenet(tmp_path)
    assert imagenet(tmp_path, allow_empty=True).classes == ("n00", "n01", "n02", "n03")
