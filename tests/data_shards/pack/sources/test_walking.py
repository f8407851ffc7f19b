"""Folders as they are on disks: links, hidden files, empty classes, other names of splits."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.format.image_names import is_hidden, is_image
from data_shards.format.samples import BadSourceError, Source
from data_shards.pack.sources.folders import BESIDE_CLASSES, image_folder
from data_shards.pack.sources.walking import LINKED_DIRECTORIES
from tests.data_shards.image_folders import make_folder
from tests.messages import assert_each_names, assert_names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train and val with the classes class-0 and class-1, 4 and 2 images each, and a directory elsewhere."""
    make_folder(tmp_path / "f", {"train": 8, "val": 4}, classes=2)
    make_folder(tmp_path / "elsewhere", {"x": 3}, classes=1)
    return tmp_path / "f"


def listed(source: Source, split: str = "train") -> list[str]:
    samples = source.splits[split]
    return [samples.describe(i) for i in range(len(samples))]


def link(target: str) -> Callable[[Path], object]:
    return lambda path: os.symlink(target, path)


@pytest.mark.parametrize(
    "target",
    [
        ".",  # the class
        "..",  # the split
        "../..",  # the root
        "/",  # everything
        "../class-1",  # a sibling
        "../../val",  # another split
        "../../val/class-1",  # a class of another split
    ],
)
@pytest.mark.parametrize("place", ["train/class-0/link", "train/class-0/a/b/link", "train/link"])
def test_a_link_into_the_tree_adds_nothing_and_is_said(root: Path, target: str, place: str) -> None:
    whole = image_folder(root)
    assert whole.notes == ()
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    aim = (root / "train" / "class-0" / target).resolve()
    os.symlink(os.path.relpath(aim, path.parent) if target != "/" else "/", path)
    source = image_folder(root)
    assert source.classes == whole.classes
    assert [source.splits[s].digest for s in source.splits] == [whole.splits[s].digest for s in whole.splits]
    name = place.removeprefix("train/")
    assert_each_names(source.notes, (f"train: skipped {LINKED_DIRECTORIES}: 1, such as {name} ({aim})",))


def test_links_that_lead_round_in_a_circle(root: Path) -> None:
    for one, other in (("class-0", "class-1"), ("class-1", "class-0")):
        os.symlink(f"../{other}", root / "train" / one / "other")
    elsewhere = root.parent / "elsewhere"
    os.symlink(elsewhere, elsewhere / "x" / "up")
    os.symlink(root, elsewhere / "root")
    os.symlink(elsewhere, root / "train" / "class-1" / "more")
    source = image_folder(root)
    assert len(listed(source)) == 8 + 3
    assert_each_names(
        source.notes,
        (f"train: skipped {LINKED_DIRECTORIES}: 4, such as class-0/other ({root}/train/class-1)",),
    )


def test_a_class_on_another_disk_works_and_is_listed_once(root: Path) -> None:
    elsewhere = root.parent / "elsewhere" / "x" / "class-0"
    os.symlink(elsewhere, root / "train" / "class-2")
    source = image_folder(root)
    assert source.classes == ("class-0", "class-1", "class-2")
    assert listed(source)[8:] == [f"class-2/{n:04d}.jpg" for n in range(3)]
    assert source.splits["train"][8]["label"] == 2
    assert_each_names(source.notes, ("val: 1 of 3 classes have no images: class-2",))
    os.symlink(elsewhere, root / "train" / "class-3")
    os.symlink(elsewhere, root / "train" / "class-1" / "again")
    again = image_folder(root)
    assert again.classes == source.classes
    assert again.splits["train"].digest == source.splits["train"].digest
    assert "listed already: 2, such as class-3" in again.notes[0]


def test_two_links_to_one_directory_outside_and_into_it(root: Path) -> None:
    outside = root.parent / "elsewhere"
    os.symlink(outside / "x", root / "train" / "class-0" / "a")
    os.symlink(outside, root / "train" / "class-1" / "b")
    source = image_folder(root)
    assert listed(source)[4:7] == [f"class-0/a/class-0/{n:04d}.jpg" for n in range(3)]
    assert len(listed(source)) == 8 + 3
    assert_each_names(
        source.notes, (f"train: skipped {LINKED_DIRECTORIES}: 1, such as class-1/b/x ({outside}/x)",)
    )


def test_links_to_files(root: Path) -> None:
    """A link to an image of the split is a copy of it; one to an image elsewhere is an image."""
    train = root / "train" / "class-0"
    os.symlink("0000.jpg", train / "copy.jpg")
    os.symlink("../class-1/0001.jpg", train / "other.jpg")
    os.symlink(root.parent / "elsewhere" / "x" / "class-0" / "0000.jpg", train / "outside.jpg")
    (train / ".store").mkdir()
    (train / "0002.jpg").rename(train / ".store" / "blob")
    os.symlink(".store/blob", train / "0002.jpg")
    os.symlink("nowhere.jpg", train / "broken.jpg")
    os.symlink("self.jpg", train / "self.jpg")
    source = image_folder(root)
    names = [name.removeprefix("class-0/") for name in listed(source)[:-4]]
    assert names == ["0000.jpg", "0002.jpg", "0004.jpg", "0006.jpg", "broken.jpg", "outside.jpg", "self.jpg"]
    assert "links to images that are listed already: 2, such as class-0/copy.jpg" in " ".join(source.notes)
    samples = source.splits["train"]
    for row in (4, 6):  # a link to nothing, and one to itself
        with pytest.raises(BadSourceError):
            samples[row]
        assert samples.sizes()[row] == 0


def test_a_class_whose_disk_is_away_is_refused(root: Path) -> None:
    os.symlink("/mnt/away/class-2", root / "train" / "class-2")
    with pytest.raises(DataError, match="class-2: links to /mnt/away/class-2, which is not there; bring it"):
        image_folder(root)


HIDDEN_FILES = [
    *("class-0/.DS_Store", "class-0/._0000.jpg", "class-0/Thumbs.db", "class-0/desktop.ini"),
    *("class-0/.ipynb_checkpoints/0000.jpg", ".ipynb_checkpoints/0000-checkpoint.jpg", "__MACOSX/x/._a.jpg"),
    *("class-1/.thumbnails/a.jpg", "class-1/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "class-1/deep/THUMBS.DB"),
    *(".git/x.jpg", "._class-0", "$RECYCLE.BIN/a.jpg", "lost+found/a.jpg"),
]


@pytest.mark.parametrize("name", HIDDEN_FILES)
def test_hidden_files_are_skipped_and_counted(root: Path, name: str) -> None:
    whole = image_folder(root)
    path = root / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\5\x16\7" + bytes(78))
    source = image_folder(root)
    assert source.classes == whole.classes
    assert source.splits["train"].digest == whole.splits["train"].digest
    assert is_hidden(name)
    assert len(source.notes) == 1
    assert source.notes[0].startswith("train: skipped hidden or system files or directories: 1, such as ")


def test_names_that_are_not_hidden() -> None:
    for name in ("./a/b.jpg", "../a.jpg", "a.b/c.jpg", "macosx/a.jpg", "Thumbs/a.jpg", "a/_x.jpg"):
        assert not is_hidden(name)
    for name in ("a.JPG", "a.JFIF", "b.x.Tiff", "a.avif", "a.pgm", "a.gif"):
        assert is_image(name)
    for name in ("a.heic", "jpg", "a.jpg.txt", "a.mp4"):
        assert not is_image(name)


def test_an_empty_class_is_refused_unless_it_is_allowed(root: Path) -> None:
    (root / "train" / "a-empty").mkdir()
    (root / "train" / "b-heic").mkdir()
    (root / "train" / "b-heic" / "1.heic").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        image_folder(root)
    parts = (f"{root}: train: 2 of 4 classes", "a-empty, b-heic", "--allow-empty", "such as b-heic/1.heic")
    assert_names(str(caught.value), *parts)
    source = image_folder(root, allow_empty=True)
    assert source.classes == ("a-empty", "b-heic", "class-0", "class-1")
    assert source.splits["train"].labels.tolist() == [2] * 4 + [3] * 4
    assert "train: 2 of 4 classes have no images: a-empty, b-heic" in source.notes


@pytest.mark.parametrize("gone", ["images", "directory"])
def test_a_split_that_lacks_a_class_is_said(root: Path, gone: str) -> None:
    for path in (root / "val" / "class-0").iterdir():
        path.unlink()
    if gone == "directory":
        (root / "val" / "class-0").rmdir()
    source = image_folder(root)
    assert source.splits["val"].labels.tolist() == [1, 1]
    assert_each_names(source.notes, ("val: 1 of 2 classes have no images: class-0",))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("valid", "val"), ("validation", "val"), ("dev", "val"), ("VAL", "val"), ("Validation", "val")),
        *(("training", "train"), ("Train", "train"), ("testing", "test"), ("TEST", "test")),
    ],
)
def test_a_split_under_another_name_is_used_and_said(tmp_path: Path, name: str, split: str) -> None:
    make_folder(tmp_path, {split: 6, "train": 6})
    whole = image_folder(tmp_path)
    (tmp_path / split).rename(tmp_path / name)
    source = image_folder(tmp_path)
    assert source.classes == whole.classes
    assert {s: source.splits[s].digest for s in source.splits} == {
        s: whole.splits[s].digest for s in whole.splits
    }
    assert_each_names(source.notes, (f"{tmp_path}/{name}: ", f"used as the split {split}"))


def test_two_directories_of_one_split_are_refused(root: Path) -> None:
    make_folder(root, {"valid": 4}, classes=2)
    with pytest.raises(DataError, match=r"val/ and valid/ are both the split val; rename one"):
        image_folder(root)


def test_a_link_to_a_split_is_no_second_one(root: Path) -> None:
    whole = image_folder(root)
    os.symlink("val", root / "valid")
    os.symlink("train", root / "test")
    source = image_folder(root)
    assert source.splits["val"].digest == whole.splits["val"].digest
    assert source.splits["test"].digest == whole.splits["train"].digest
    assert_each_names(
        source.notes,
        (f"{root}/valid: ", "not used", "link to val/"),
        (f"{root}/test: ", "same directory", f"{root}/train"),
    )


def test_other_directories_beside_the_splits_are_named(root: Path) -> None:
    for name in ("unlabeled", "extra", ".cache"):
        (root / name).mkdir()
    (root / "train" / "list.txt").write_text("x")
    notes = image_folder(root).notes
    assert_each_names(
        notes,
        (f"{root}: extra/, unlabeled/ not used",),
        (f"train: skipped {BESIDE_CLASSES}: 1, such as list.txt",),
    )


def test_a_wrong_directory_is_refused_with_the_right_one(root: Path) -> None:
    with pytest.raises(DataError, match=rf"but f/ does; pass --directory {root}"):
        image_folder(root.parent)
    with pytest.raises(DataError, match=r"\(it holds class-0/, class-1/\); --directory names their parent"):
        image_folder(root / "train")


def test_only_the_splits_asked_for_are_listed(root: Path) -> None:
    (root / "test").mkdir()
    (root / "test" / "0.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"test: holds no directories.*leave it out of --splits"):
        image_folder(root)
    source = image_folder(root, splits=["val"])
    assert (list(source.splits), source.classes) == (["val"], ("class-0", "class-1"))
    with pytest.raises(DataError, match="--splits vall: .* holds train, val, test"):
        image_folder(root, splits=["train", "vall"])


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["1", "2", "10"], "label 1 is class 10, not class 2"),
        (["0", "1", "2", "3", "10", "20"], "label 2 is class 10, not class 2"),
        (["01", "02", "10"], ""),
        (["1", "10", "a2"], ""),
    ],
)
def test_numbers_sorted_as_text_are_said(tmp_path: Path, names: list[str], note: str) -> None:
    for name in names:
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.jpg").write_bytes(b"x")
    source = image_folder(tmp_path)
    assert source.classes == tuple(sorted(names))
    assert [text.rpartition(": ")[2] for text in source.notes] == ([note] if note else [])
