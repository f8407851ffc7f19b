"""Zipped ImageNet against `zipfile`, and ImageNet-22K's JSON lists against `json.loads`."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.image_names import HIDDEN
from data_shards.format.samples import BadSourceError
from data_shards.pack.sources.imagenet import MAP_22K, imagenet22k, imagenet_zip, json_items
from data_shards.pack.write import pack
from tests.data_shards.image_folders import contents, jpeg, samples_in
from tests.messages import assert_each_names

NAMES = [f"n{i % 4:08d}/n{i % 4:08d}_{i}.JPEG" for i in range(30)]


def make_zip(root: Path, split: str = "train", prefix: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    root.mkdir(exist_ok=True)
    with zipfile.ZipFile(root / f"{split}.zip", "w", method) as archive:
        for number in np.random.default_rng(0).permutation(30).tolist():
            archive.writestr(prefix + NAMES[number], jpeg(number))
    lines = (f"{name}\t{number % 4}\n" for number, name in enumerate(NAMES))
    (root / f"{split}_map.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize("prefix", ["", "train/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("zip64", [False, True])
def test_members_are_those_that_zipfile_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, method: int, zip64: bool
) -> None:
    if zip64:  # every size and offset in the extra fields, the directory behind zip64's record
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    source = imagenet_zip(make_zip(tmp_path, prefix=prefix, method=method))
    samples = source.splits["train"]
    with zipfile.ZipFile(tmp_path / "train.zip") as archive:
        for i, name in enumerate(NAMES):
            assert samples[i] == {"image": archive.read(prefix + name), "label": i % 4}
            assert samples.sizes()[i] == archive.getinfo(prefix + name).file_size
            assert samples.describe(i) == f"train.zip/{prefix}{name}"
    assert source.classes == tuple(f"n{i:08d}" for i in range(4))
    part = samples.select(np.array([7, 3]))
    assert [part[0], part[1]] == [samples[7], samples[3]]


def test_val_has_no_directories_and_takes_its_classes_from_train(tmp_path: Path) -> None:
    make_zip(tmp_path)
    with zipfile.ZipFile(tmp_path / "val.zip", "w") as archive:
        archive.writestr("ILSVRC2012_val_00000001.JPEG", jpeg(1))
    (tmp_path / "val_map.txt").write_text("ILSVRC2012_val_00000001.JPEG\t3\r\n\n")
    source = imagenet_zip(tmp_path)
    assert source.splits["val"][0] == {"image": jpeg(1), "label": 3}
    assert source.classes[3] == "n00000003"


def test_many_processes_pack_a_zip_to_the_same_bytes(tmp_path: Path) -> None:
    source = imagenet_zip(make_zip(tmp_path / "zip", method=zipfile.ZIP_DEFLATED))
    for workers in (1, 2):
        pack(source, "train", tmp_path / str(workers), samples_per_shard=8, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert sorted(samples_in(tmp_path / "1")) == sorted((jpeg(i), i % 4) for i in range(30))


def test_damaged_members_are_bad_and_the_others_are_not(tmp_path: Path) -> None:
    make_zip(tmp_path)
    with zipfile.ZipFile(tmp_path / "train.zip") as archive:
        offsets = [archive.getinfo(name).header_offset for name in NAMES]
    raw = bytearray((tmp_path / "train.zip").read_bytes())
    raw[offsets[3] + 30 + len(NAMES[3]) + 100] ^= 1  # in its body
    raw[offsets[5]] ^= 1  # its local signature
    raw[offsets[6] + 32] ^= 1  # its name there
    (tmp_path / "train.zip").write_bytes(raw)
    with open(tmp_path / "train_map.txt", "a") as file:
        file.write("n00000000/none.JPEG\t0\n")
    samples = imagenet_zip(tmp_path).splits["train"]
    for i, reason in {3: "CRC-32 differs", 5: "header", 6: "header", 30: "not in train.zip"}.items():
        with pytest.raises(BadSourceError, match=reason):
            samples[i]
    assert samples.sizes()[30] == 0
    assert samples[4] == {"image": jpeg(4), "label": 0}


@pytest.mark.parametrize("keep", [100, -10])
def test_an_archive_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = make_zip(tmp_path) / "train.zip"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="train.zip: cannot read this zip archive: it is cut short"):
        imagenet_zip(tmp_path)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html>403</html>", "an HTML page"),
        (b"\x1f\x8b" + bytes(50), "a gzip file"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"something", "another kind of file"),
    ],
)
def test_what_is_no_archive_is_called_what_it_is(tmp_path: Path, body: bytes, kind: str) -> None:
    (make_zip(tmp_path) / "train.zip").write_bytes(body)
    with pytest.raises(DataError, match=f"train.zip: is {kind}.*, not a zip archive"):
        imagenet_zip(tmp_path)


@pytest.mark.parametrize(
    ("method", "name"), [(zipfile.ZIP_LZMA, "14 .LZMA."), (zipfile.ZIP_BZIP2, "12 .bzip2.")]
)
def test_another_compression_is_refused_at_once(tmp_path: Path, method: int, name: str) -> None:
    with pytest.raises(DataError, match=f"30 members are compressed by method {name}, such as n0"):
        imagenet_zip(make_zip(tmp_path, method=method))


def flip_in(path: Path, signature: bytes, offset: int, value: int) -> None:
    """Write a byte `offset` behind the last `signature` in a file."""
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(signature) + offset] = value
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("signature", "offset", "value", "reason"),
    [
        (b"PK\x01\x02", 8, 1, "it is encrypted"),
        (b"PK\x05\x06", 4, 3, "it is one part of an archive of several"),
        (b"PK\x05\x06", 11, 255, "too short for the 65310 members"),  # 30 + 255 * 256
        (b"PK\x01\x02", 0, 0, "entry 29 of its directory is damaged"),
    ],
)
def test_an_archive_that_cannot_be_read_says_why(
    tmp_path: Path, signature: bytes, offset: int, value: int, reason: str
) -> None:
    flip_in(make_zip(tmp_path) / "train.zip", signature, offset, value)
    with pytest.raises(DataError, match=f"train.zip: cannot read this zip archive: .*{reason}"):
        imagenet_zip(tmp_path)


def test_an_archive_of_another_map_is_refused(tmp_path: Path) -> None:
    (make_zip(tmp_path) / "train_map.txt").write_text("other/1.JPEG\t0\n")
    with pytest.raises(DataError, match="none of its 30 members is in train_map.txt, which lists other/1"):
        imagenet_zip(tmp_path)


@pytest.mark.parametrize("name", ["._1.JPEG", "a/.DS_Store", "__MACOSX/a/1.JPEG", "@eaDir/1.JPEG"])
def test_hidden_names_in_the_lists_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    whole = imagenet_zip(make_zip(tmp_path)).splits["train"]
    with open(tmp_path / "train_map.txt", "a") as file:
        file.write(f"{name}\t0\n")
    source = imagenet_zip(tmp_path)
    assert source.splits["train"].digest == whole.digest
    assert_each_names(source.notes, (f"{tmp_path}: skipped {HIDDEN}: 1, such as {name}",))


def test_maps_of_other_programs(tmp_path: Path) -> None:
    """A byte order mark, labels as floats, another name of the split."""
    digest = imagenet_zip(make_zip(tmp_path)).splits["train"].digest
    text = "".join(f"{name}\t{number % 4}.0\n" for number, name in enumerate(NAMES))
    (tmp_path / "train_map.txt").write_text("\ufeff" + text)
    for suffix in (".zip", "_map.txt"):
        (tmp_path / f"validation{suffix}").write_bytes((tmp_path / f"train{suffix}").read_bytes())
    source = imagenet_zip(tmp_path)
    assert [samples.digest for samples in source.splits.values()] == [digest] * 2
    assert list(source.splits) == ["train", "val"]
    assert_each_names(source.notes, (f"{tmp_path}: ", " validation ", "used as the split val"))
    (tmp_path / "train_map.txt").write_bytes("a\u00e4.JPEG\t0\n".encode("latin-1"))
    with pytest.raises(DataError, match="train_map.txt is not UTF-8 text"):
        imagenet_zip(tmp_path)


def test_a_label_that_no_image_has_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    """Labels from 1 to 4 instead of 0 to 3: a class 0 without images."""
    make_zip(tmp_path)
    lines = (f"{name}\t{number % 4 + 1}\n" for number, name in enumerate(NAMES))
    (tmp_path / "train_map.txt").write_text("".join(lines))
    with pytest.raises(DataError, match="train: 1 of 5 classes have no images: 0; .* --allow-empty"):
        imagenet_zip(tmp_path)
    source = imagenet_zip(tmp_path, allow_empty=True)
    assert source.classes[0] == "0"
    assert_each_names(source.notes, ("train: 1 of 5 classes have no images: 0",))


def test_maps_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no train_map.txt"):
        imagenet_zip(tmp_path)
    make_zip(tmp_path)
    for text in ("a.JPEG 0\n", "a.JPEG\tx\n", "\t0\n", "a.JPEG\t-1\n"):
        (tmp_path / "train_map.txt").write_text(f"b.JPEG\t0\n{text}")
        with pytest.raises(DataError, match="line 2 is not PATH, a tab and a label"):
            imagenet_zip(tmp_path)


@pytest.mark.parametrize("chunk", [3, 7, 50, 10**6])
def test_pieces_of_json_are_the_whole(chunk: int) -> None:
    items = [['a],[b"', 0], ["]", 1], ["ä\\u0041", 2], ["x,]", 3], ["plain/1.JPEG", 21840]] * 3
    for text in (json.dumps(items), " \n" + json.dumps(items, indent=2, ensure_ascii=False), "[]"):
        assert list(json_items(Path("x"), io.StringIO(text), chunk)) == json.loads(text)


def make_22k(root: Path, prefix: str) -> Path:
    for number, name in enumerate(NAMES):
        path = root / "fall11_whole" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    for split, numbers in {"train": range(25), "val": range(25, 30)}.items():
        pairs = [[prefix + NAMES[number], number % 4] for number in numbers]
        (root / MAP_22K.format(split)).write_text(json.dumps(pairs))
    return root


@pytest.mark.parametrize("prefix", ["", "fall11_whole/", "./fall11_whole/"])
def test_22k_by_either_way_of_naming(tmp_path: Path, prefix: str) -> None:
    source = imagenet22k(make_22k(tmp_path, prefix))
    assert [tuple(source.splits["train"][i].values()) for i in range(25)] == [
        (jpeg(i), i % 4) for i in range(25)
    ]
    assert [source.splits["val"][i]["label"] for i in range(5)] == [1, 2, 3, 0, 1]
    assert source.classes == tuple(f"n{i:08d}" for i in range(4))


@pytest.mark.parametrize("folder", ["fall11_whole", "winter21_whole", "."])
def test_22k_without_lists_has_the_classes_of_its_folders(folder: str, tmp_path: Path) -> None:
    for number in range(9):
        path = tmp_path / folder / f"n{number % 3:08d}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    source = imagenet22k(tmp_path)
    samples = source.splits["train"]
    assert list(source.splits) == ["train"]
    assert source.classes == ("n00000000", "n00000001", "n00000002")
    assert [tuple(samples[i].values()) for i in range(9)] == [
        (jpeg(3 * place + label), label) for label in range(3) for place in range(3)
    ]
    assert (source.name, source.notes[0].count("swin-moe shards split")) == ("imagenet22k", 1)
    assert "classes from folder names" in source.notes[0]


def test_22k_lists_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no ILSVRC2011fall_whole_map_train.txt"):
        imagenet22k(tmp_path)
    path = make_22k(tmp_path, "") / MAP_22K.format("train")
    whole = path.read_text()
    for text, message in {
        whole[:-30]: "damaged or cut short near its end",
        "{}": "not a JSON list",
        '[["a", 0], ["b"]]': "item 1 is not",
        '[["a", true]]': "item 0 is not",
        '[["a", -1]]': "label -1 must be in 0",
        "[]": "is empty",
    }.items():
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            imagenet22k(tmp_path)
