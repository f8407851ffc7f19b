"""Folders of members: paired by stems in every layout, and what does not pair is named."""

from pathlib import Path

import numpy as np
import pytest

from data_shards.codecs.registry import CODECS
from data_shards.errors import DataError
from data_shards.format.fields import Field
from data_shards.format.index import Manifest
from data_shards.pack.sources.members import MemberFolder, member_folders
from data_shards.pack.write import pack
from data_shards.stream.reader import ShardReader
from launcher.cli.program import run
from launcher.cli.shards_members import extensions, folders, parse_member
from tests.data_shards.image_folders import jpeg

IMAGE, MASK = (
    MemberFolder(Field("image", "image"), "images"),
    MemberFolder(Field("mask", "label_image"), "masks"),
)


def mask(number: int) -> bytes:
    return CODECS["label_image"].encode(np.full((24, 32), number, np.uint8))


def put(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


def fill(images: Path, masks: Path, count: int, image: str = "%d.jpg", label: str = "%d.png") -> None:
    for number in range(count):
        put(images / f"city{number % 2}" / (image % number), jpeg(number))
        put(masks / f"city{number % 2}" / (label % number), mask(number))


@pytest.mark.parametrize("layout", ["{split}/{folder}", "{folder}/{split}"])
def test_both_layouts_give_the_same_pairs(tmp_path: Path, layout: str) -> None:
    for split, count in (("train", 5), ("validation", 2)):
        fill(*(tmp_path / layout.format(split=split, folder=name) for name in ("images", "masks")), count)
    put(tmp_path / layout.format(split="train", folder="masks") / "notes.txt", b"x")
    source = member_folders(tmp_path, [IMAGE, MASK])
    assert {split: len(samples) for split, samples in source.splits.items()} == {"train": 5, "val": 2}
    assert "files that are no such member (mask): 1" in source.notes[0]
    pack(source, "train", tmp_path / "out")
    reader = ShardReader(tmp_path / "out", Manifest.load(tmp_path / "out"))
    pairs = [reader.read(0, row) for row in range(5)]
    found = {members["image"]: members["mask"] for members in pairs}
    assert found == {jpeg(number): mask(number) for number in range(5)}


def test_patterns_and_one_split(tmp_path: Path) -> None:
    fill(tmp_path / "left", tmp_path / "fine", 4, "a_%d_left.jpg", "a_%d_ids.png")
    put(tmp_path / "fine" / "city0" / "a_0_color.png", b"x")
    members = folders(["image=left/*_left.jpg", "mask=fine/*_ids.png:label_image"])
    source = member_folders(tmp_path, members)
    first = source.splits["train"][0]
    assert (first["image"], first["mask"]) == (jpeg(0), mask(0))
    assert source.splits["train"].describe(0) == "left/city0/a_0_left.jpg"
    assert source.splits["train"].sizes().tolist() == [len(jpeg(n)) + len(mask(n)) for n in (0, 2, 1, 3)]


def test_what_does_not_pair_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "images", tmp_path / "masks", 4)
    put(tmp_path / "images" / "city0" / "9.jpg", jpeg(9))
    with pytest.raises(DataError, match=r"1 samples have no mask in .*/masks: 'city0/9'; add these files"):
        member_folders(tmp_path, [IMAGE, MASK])
    with pytest.raises(DataError, match=r"1 samples have no mask"):
        member_folders(tmp_path, [MASK, IMAGE])
    put(tmp_path / "images" / "city0" / "9.PNG", mask(9))
    with pytest.raises(DataError, match=r"9.jpg: .*/9.PNG is the image of city0/9 already"):
        member_folders(tmp_path, [IMAGE, MASK])
    with pytest.raises(DataError, match=r"boxes: no such directory, nor are .*/SPLIT/boxes"):
        member_folders(tmp_path, [IMAGE, MemberFolder(Field("boxes", "json"), "boxes")])
    (tmp_path / "train" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train/masks: no such directory, but .*/train/images is there"):
        member_folders(tmp_path, [IMAGE, MASK])
    with pytest.raises(DataError, match="label needs --classes FILE"):
        member_folders(tmp_path, [IMAGE, MemberFolder(Field("label", "int"), "labels")])


def test_arguments() -> None:
    assert parse_member("mask=a/b/:label_image") == (Field("mask", "label_image"), "a/b")
    assert parse_member("label=ids") == (Field("label", "int"), "ids")
    assert extensions([]) == (Field("image", "image"), Field("label", "int"))
    assert extensions(["mask=.Seg.PNG:label_image"]) == (Field("mask", "label_image", "seg.png"),)
    with pytest.raises(DataError, match=r"--member mask=x: say what mask is, such as mask=x:label_image"):
        parse_member("mask=x")
    with pytest.raises(DataError, match=r"--member mask=x:wav: .* no codec 'wav'"):
        parse_member("mask=x:wav")
    with pytest.raises(DataError, match="--member image: name its folder"):
        folders(["image"])


def test_the_command_packs_indexes_and_mends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*words: str | Path) -> int:
        return run(["shards", *map(str, words)])

    fill(tmp_path / "in" / "images" / "train", tmp_path / "in" / "masks" / "train", 6)
    for number in range(6):
        put(tmp_path / "in" / "ids" / "train" / f"city{number % 2}" / f"{number}.cls", b"%d\n" % (number % 2))
    (tmp_path / "names").write_text("even\nodd\n")
    source = ["--source", "members", "--directory", tmp_path / "in", "--classes", tmp_path / "names"]
    members = ["--member", "image=images", "--member", "mask=masks:label_image", "--member", "label=ids"]
    sizes = ["--samples-per-shard", "3", "--image-sizes"]
    assert command("pack", *source, *members, *sizes, "--out", tmp_path / "out") == 0
    train = tmp_path / "out" / "train"
    manifest = Manifest.load(train)
    assert [field.name for field in manifest.fields] == ["image", "mask", "label", "height", "width"]
    reader = ShardReader(train, manifest)
    for row in range(3):
        members_read = reader.read(1, row)
        number = [jpeg(n) for n in range(6)].index(members_read["image"])
        assert list(members_read.values()) == [jpeg(number), mask(number), number % 2, 24, 32]
    before = {path.name: path.read_bytes() for path in train.iterdir()}
    (train / "000001.tar").unlink()
    assert command("repair", train, *source, *members) == 0
    assert {path.name: path.read_bytes() for path in train.iterdir()} == before
    assert command("verify", train, "--decode") == 0
    names = [w for n in ("mask:label_image", "image", "label", "height:int") for w in ("--member", n)]
    assert command("index", train, "--out", tmp_path / "idx", *names) == 0
    assert "6 samples of mask, image, label, height in 2 tars" in capsys.readouterr().out
    with pytest.raises(DataError, match="--member is for --source members; leave it out"):
        command("pack", "--source", "synthetic", *members, "--out", tmp_path / "no")
