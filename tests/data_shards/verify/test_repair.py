"""Damage is undone byte for byte from tar or source, or left out of a new set that says so."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.format.index import Manifest, read_index
from data_shards.pack.indexing import index_tars
from data_shards.pack.progress import read_bad
from data_shards.pack.sources.folders import image_folder
from data_shards.pack.sources.registry import Source, synthetic
from data_shards.pack.write import pack
from data_shards.verify.repair import repair
from data_shards.verify.verify import verify
from tests.data_shards.conftest import SAMPLES
from tests.data_shards.image_folders import contents, make_folder, samples_in
from tests.data_shards.tars import flatten, image_label_pairs, make_tar


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def flip(path: Path, offset: int) -> None:
    body = bytearray(path.read_bytes())
    body[offset] ^= 4
    path.write_bytes(body)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "body": lambda out: flip(out / "000002.tar", 600),
    "header": lambda out: flip(out / "000003.tar", 3),
    "truncation": lambda out: os.truncate(out / "000001.tar", 2000),
    "no tar": lambda out: (out / "000004.tar").unlink(),
    "no index": lambda out: (out / "000004.idx").unlink(),
    "index": lambda out: flip(out / "000000.idx", 5),
    "tar and index": lambda out: (flip(out / "000005.idx", 5), flip(out / "000005.tar", 600))[0],
}


@pytest.mark.parametrize(("what", "workers"), [*((name, 1) for name in (*DAMAGE, "all")), ("all", 2)])
def test_from_its_source_it_is_as_it_was(
    source: Source, shards: Path, copy: Path, what: str, workers: int
) -> None:
    for name, damage in DAMAGE.items():
        if what in (name, "all"):
            damage(copy)
    done = repair(copy, source=source, workers=workers)
    assert contents(copy) == contents(shards)
    assert done.remaining == ()
    assert done.reindexed or done.rewritten


def test_an_index_needs_its_tar_only(shards: Path, copy: Path) -> None:
    for name in ("index", "no index"):
        DAMAGE[name](copy)
    done = repair(copy)
    assert (done.reindexed, done.rewritten, done.remaining) == (("000000.idx", "000004.idx"), (), ())
    assert contents(copy) == contents(shards)


def test_sound_shards_are_let_alone(source: Source, copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert repair(copy, source=source) == repair(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before


def test_another_source_changes_nothing(source: Source, copy: Path, tmp_path: Path) -> None:
    DAMAGE["body"](copy)
    before = contents(copy)
    with pytest.raises(DataError, match=r"this source is another one, or has changed since"):
        repair(copy, source=synthetic(SAMPLES, 11, num_classes=5, image_size=16, seed=4))
    with pytest.raises(DataError, match="give one"):
        repair(copy, source=source, drop_to=tmp_path / "new")
    assert contents(copy) == before


def test_a_source_with_other_bytes_changes_nothing(tmp_path: Path) -> None:
    source = image_folder(make_folder(tmp_path / "in", {"train": 20}))
    pack(source, "train", tmp_path / "out", samples_per_shard=8)
    flip(tmp_path / "out" / "000001.tar", 600)
    before = contents(tmp_path / "out")
    ranked = [body for body, _ in samples_in(tmp_path / "out")]
    for path in (tmp_path / "in").rglob("*.jpg"):
        if path.read_bytes() == ranked[9]:  # the second of shard 1
            path.write_bytes(b"gone")
    with pytest.raises(DataError, match=r"000001.tar: this source no longer gives the packed bytes \(class-"):
        repair(tmp_path / "out", source=source)
    assert contents(tmp_path / "out") == before


def test_without_a_source_what_remains_is_said(copy: Path) -> None:
    DAMAGE["body"](copy)
    before = contents(copy)
    assert [bad.key for bad in repair(copy).remaining] == ["*", "00000040"]
    assert contents(copy) == before


def test_dropping_makes_a_new_set_and_leaves_the_old_one(shards: Path, copy: Path, tmp_path: Path) -> None:
    whole = samples_in(shards)
    ends = read_index(copy / "000001.idx")["image"]["offset"]
    flip(copy / "000002.tar", 600)  # key 40
    flip(
        copy / "000003.tar", int(read_index(copy / "000003.idx")["image"]["offset"][7]) - 500
    )  # the header of key 67
    os.truncate(copy / "000001.tar", int(ends[18]) + 10)  # keys 38 and 39
    (copy / "000004.tar").unlink()  # keys 80 ... 99
    before = contents(copy)
    done = repair(copy, drop_to=tmp_path / "new")
    new = Manifest.load(tmp_path / "new")
    assert contents(copy) == before
    assert verify(tmp_path / "new", decode=True).ok
    lost = {38, 39, 40, 67, *range(80, 100)}
    assert samples_in(tmp_path / "new") == [s for i, s in enumerate(whole) if i not in lost]
    assert new.samples == SAMPLES - len(lost)
    assert new.parent == Manifest.load(copy).digest != new.digest
    assert list(done.dropped) == read_bad(tmp_path / "new")
    assert sorted(bad.key for bad in done.dropped) == ["*", "00000038", "00000040", "row 19", "row 7"]
    assert os.stat(copy / "000000.tar").st_ino == os.stat(tmp_path / "new" / "000000.tar").st_ino
    with pytest.raises(DataError, match="holds shards already"):
        repair(copy, drop_to=tmp_path / "new")


def test_tars_made_by_others_are_not_written(tmp_path: Path) -> None:
    for i in range(2):
        make_tar(tmp_path / "in" / f"{i}.tar", flatten(image_label_pairs(range(6 * i, 6 * i + 6))))
    index_tars(tmp_path / "in")
    sound = contents(tmp_path / "in")
    (tmp_path / "in" / "1.idx").unlink()
    assert repair(tmp_path / "in").reindexed == ("1.idx",)
    assert contents(tmp_path / "in") == sound
    flip(tmp_path / "in" / "0.tar", int(read_index(tmp_path / "in" / "0.idx")["image"]["offset"][2]) + 9)
    done = repair(tmp_path / "in", drop_to=tmp_path / "new")
    assert [bad.key for bad in done.dropped] == ["k2"]
    assert (tmp_path / "new" / "0.tar").read_bytes() == (tmp_path / "in" / "0.tar").read_bytes()
    assert verify(tmp_path / "new", decode=True).ok
    assert Manifest.load(tmp_path / "new").samples == 11


def test_samples_left_out_before_stay_in_the_list(tmp_path: Path) -> None:
    source = image_folder(make_folder(tmp_path / "in", {"train": 20}))
    (tmp_path / "in" / "train" / "class-0" / "0003.jpg").write_bytes(b"x")
    pack(source, "train", tmp_path / "out", samples_per_shard=8)
    flip(tmp_path / "out" / "000001.tar", 600)
    repair(tmp_path / "out", drop_to=tmp_path / "new")
    new = Manifest.load(tmp_path / "new")
    assert (new.samples, new.bad_sources, len(read_bad(tmp_path / "new"))) == (18, 2, 2)
