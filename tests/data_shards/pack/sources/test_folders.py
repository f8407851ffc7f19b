"""Folders as a source, and the compact list of names below them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.samples import BadSourceError
from data_shards.pack.sources.folders import image_folder
from data_shards.pack.sources.path_list import PathList
from data_shards.pack.sources.walking import OTHER_FILES
from tests.data_shards.image_folders import jpeg, make_folder
from tests.messages import assert_each_names

PATHS = ["a/b/1.jpg", "2.jpg", "a/3.jpg", "ä/ö/ü.jpg", "a/b/4", "a/\udcff.jpg"]


def test_names_come_back_whole_and_selected() -> None:
    names = PathList.of(PATHS)
    assert [names[i] for i in range(len(names))] == PATHS
    rows = np.array([3, 0, 3, 5])
    picked = names.select(rows)
    assert [picked[i] for i in range(4)] == [PATHS[row] for row in rows]
    assert set(picked.directories) == {"ä/ö/", "a/b/", "a/"}
    assert len(PathList.of([])) == 0


def test_names_take_few_bytes() -> None:
    names = PathList.of(f"n{i % 50:08d}/n{i % 50:08d}_{i}.JPEG" for i in range(20000))
    taken = names.last_parts.nbytes + names.ends.nbytes + names.directory_ids.nbytes
    # Per name: n00000000_ (10) and up to 5 digits and .JPEG (5), two 32-bit numbers.
    assert taken / 20000 <= 10 + 5 + 5 + 8


def test_a_folder_as_torchvision_reads_it(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"train": 10, "val": 4})
    (root / "train" / "class-1" / "deeper").mkdir()
    (root / "train" / "class-1" / "deeper" / "x.PNG").write_bytes(jpeg(99))
    (root / "train" / "class-0" / "readme.txt").write_text("no image")
    source = image_folder(root)
    train = source.splits["train"]
    # Numbers by class and name: 0 3 6 9, then 1 4 7 and deeper/x, then 2 5 8.
    found = [(train.describe(i), *train[i].values()) for i in range(len(train))]
    numbers = [0, 3, 6, 9, 1, 4, 7, 99, 2, 5, 8]
    assert [body for _, body, _ in found] == [jpeg(n, 24 if n == 99 else 24 + 8 * (n % 7)) for n in numbers]
    assert [label for *_, label in found] == [0] * 4 + [1] * 4 + [2] * 3
    assert found[7][0] == "class-1/deeper/x.PNG"
    assert source.classes == ("class-0", "class-1", "class-2")
    assert len(source.splits["val"]) == 4
    assert_each_names(source.notes, (f"train: skipped {OTHER_FILES}: 1, such as class-0/readme.txt",))


def test_sizes_labels_and_a_digest_that_knows_no_place(tmp_path: Path) -> None:
    make_folder(tmp_path / "a", {"train": 7})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, other = (image_folder(tmp_path / side).splits["train"] for side in "ab")
    assert one.digest == other.digest
    assert one.sizes().tolist() == [len(one[i]["image"]) for i in range(7)]
    part = one.select(np.array([5, 2]))
    assert [part[0], part[1]] == [one[5], one[2]]
    assert part.label(0) == one.label(5)
    (tmp_path / "b" / "train" / "class-0" / "0000.jpg").rename(
        tmp_path / "b" / "train" / "class-0" / "new.jpg"
    )
    assert image_folder(tmp_path / "b").splits["train"].digest != one.digest


def test_a_missing_file_is_bad_and_a_missing_root_is_fatal(tmp_path: Path) -> None:
    samples = image_folder(make_folder(tmp_path, {"train": 7})).splits["train"]
    (tmp_path / "train" / samples.describe(0)).unlink()
    (tmp_path / "train" / samples.describe(1)).write_bytes(b"")
    assert samples.sizes()[:2].tolist() == [0, 0]
    with pytest.raises(BadSourceError, match="No such file"):
        samples[0]
    with pytest.raises(BadSourceError, match="empty file"):
        samples[1]
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(DataError, match="train: is gone") as caught:
        samples[2]
    assert not isinstance(caught.value, BadSourceError)


def test_an_unreadable_file_stops_the_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = image_folder(make_folder(tmp_path, {"train": 2})).splits["train"]

    def fail(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(DataError, match=r"cannot read it \(Input/output error\)") as caught:
        samples[0]
    assert not isinstance(caught.value, BadSourceError)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--source folder needs --directory"):
        image_folder(None)
    with pytest.raises(DataError, match="holds none of train/, val/, test/"):
        image_folder(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="each class must be one"):
        image_folder(tmp_path)
    make_folder(tmp_path, {"train": 3, "val": 3})
    (tmp_path / "val" / "other").mkdir()
    with pytest.raises(DataError, match="class other is not in"):
        image_folder(tmp_path)
