"""Tars made by others: indexed as they are, whatever their members' order, padding and names."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from data_shards.errors import DataError
from data_shards.format.fields import split_name
from data_shards.format.image_names import HIDDEN
from data_shards.format.index import MANIFEST_NAME, Manifest, check_shards
from data_shards.pack.indexing import IndexOptions, index_tars
from data_shards.pack.progress import BAD_NAME, read_bad
from data_shards.pack.sources.packed import packed_source
from data_shards.pack.tar_scan import DOTTED, UNKNOWN
from data_shards.pack.write import pack
from data_shards.verify.verify import verify
from tests.data_shards.image_folders import bodies_by_index, contents, jpeg, samples_in
from tests.data_shards.tars import flatten, image_label_pairs, make_tar
from tests.messages import assert_each_names


def test_indices_point_at_what_the_webdataset_library_reads(tmp_path: Path) -> None:
    for i, kind in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        make_tar(
            tmp_path / f"{i}.tar",
            flatten(image_label_pairs(range(10 * i, 10 * i + 10))),
            kind,
            padding=10240 * i,
        )
    before = contents(tmp_path)
    done = index_tars(tmp_path)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"0.idx", "1.idx", "2.idx", MANIFEST_NAME}
    assert bodies_by_index(tmp_path) == samples_in(tmp_path) == [(jpeg(n), n % 3) for n in range(30)]
    assert (done.manifest.layout, done.manifest.classes, done.bad) == ("indexed", ("0", "1", "2"), ())
    assert verify(tmp_path, decode=True).ok
    check_shards(done.manifest, tmp_path)


def test_odd_orders_long_names_and_other_members(tmp_path: Path) -> None:
    far, near = "d" * 60 + "/" + "e" * 60 + "/", "./x/"
    groups = [
        [(f"{far}{'long' * 30}.cls", b" 2\n"), (f"{far}{'long' * 30}.JPG", jpeg(0))],
        [(f"{near}a.jpeg", jpeg(1)), (f"{near}a.seg.png", b"no image of ours"), (f"{near}a.txt", b"0")],
        [("b.png", jpeg(2)), ("b.json", b'{"label": 1, "caption": "x"}'), ("b.txt", b"a caption")],
    ]
    scattered = [group[i] for i in range(2) for group in groups] + [groups[1][2], groups[2][2]]
    make_tar(tmp_path / "a.tar", [*scattered, ("README", b"hello"), (".hidden", b"")], tarfile.PAX_FORMAT)
    done = index_tars(tmp_path)
    # In the tar stand, in turn, the label of the first, the images of the other two and of the first.
    assert bodies_by_index(tmp_path) == [(jpeg(1), 0), (jpeg(2), 1), (jpeg(0), 2)]
    assert_each_names(
        done.notes,
        (f"{tmp_path}: skipped {DOTTED}: 1, such as a.tar: ./x/a.seg.png",),
        (f"{tmp_path}: skipped {UNKNOWN}: 1, such as a.tar: README",),
        (f"{tmp_path}: skipped {HIDDEN}: 1, such as a.tar: .hidden",),
    )
    assert verify(tmp_path).ok


@pytest.mark.parametrize(
    "name",
    ["a/b.jpg", "b.jpg", "a.b/c.jpg", "x.seg.png", "noext", ".hidden", "a/.x", "UP.JPG", "a/b.c/d.e.f"],
)
def test_keys_are_the_librarys(name: str) -> None:
    import webdataset

    key, suffix = webdataset.tariterators.base_plus_ext(name)
    assert split_name(name) == ((key, suffix.lower()) if suffix else (split_name(name)[0], ""))


def test_names_as_labels_and_a_list_of_classes(tmp_path: Path) -> None:
    labels = ["dog", "cat", "dog", "eel"]
    members = [[(f"k{n}.jpg", jpeg(n)), (f"k{n}.txt", name.encode())] for n, name in enumerate(labels)]
    make_tar(tmp_path / "a.tar", flatten(members))
    assert index_tars(tmp_path).manifest.classes == ("cat", "dog", "eel")
    assert [label for _, label in bodies_by_index(tmp_path)] == [1, 0, 1, 2]
    index_tars(tmp_path, options=IndexOptions(classes=["eel", "ox", "cat", "dog"]))
    assert [label for _, label in bodies_by_index(tmp_path)] == [3, 2, 3, 0]
    with pytest.raises(DataError, match=r"label eel \(a.tar: k3.txt\) is not among the 2 classes"):
        index_tars(tmp_path, options=IndexOptions(classes=["cat", "dog"]))


def test_json_labels(tmp_path: Path) -> None:
    values = [b"3", b'"1"', b'{"y": 2}', b'{"label": 5}', b'{"y": 4.0}', b"[", b'{"y": true}']
    make_tar(
        tmp_path / "a.tar", flatten([[(f"{n}.jpg", jpeg(n)), (f"{n}.json", v)] for n, v in enumerate(values)])
    )
    done = index_tars(tmp_path, options=IndexOptions(label_key="y"))
    assert [label for _, label in bodies_by_index(tmp_path)] == [3, 1, 2, 4]
    assert [bad.key for bad in done.bad] == ["3", "5", "6"]
    assert "its .json has no 'y'; it has label" in done.bad[0].reason


def test_incomplete_and_undecodable_keys_are_listed(tmp_path: Path) -> None:
    members = flatten(image_label_pairs(range(4)))
    others = [
        ("x.jpg", jpeg(9)),
        ("y.cls", b"1"),
        ("z.jpg", jpeg(8)[:200]),
        ("z.cls", b"0"),
        ("e.jpg", b""),
        ("e.cls", b"0"),
    ]
    make_tar(tmp_path / "a.tar", members + others)
    done = index_tars(tmp_path)
    assert done.manifest.samples == 4
    listed = {bad.key: bad.reason.partition(" (")[0] for bad in read_bad(tmp_path)}
    assert listed["x"] == "an image without a label"
    assert listed["y"] == "a label without an image"
    assert listed["z"].startswith("undecodable image")
    assert listed["e"] == "e.jpg has 0 bytes"
    assert done.manifest.bad_sources == 4
    assert index_tars(tmp_path, options=IndexOptions(check="none")).manifest.samples == 5
    assert BAD_NAME in contents(tmp_path)


@pytest.mark.parametrize(
    "damage", ["first header", "header", "cut in a body", "cut at a header", "data behind"]
)
def test_a_damaged_structure_is_refused_by_its_place(tmp_path: Path, damage: str) -> None:
    make_tar(tmp_path / "a.tar", flatten(image_label_pairs(range(6))))
    raw = bytearray((tmp_path / "a.tar").read_bytes())
    with tarfile.open(tmp_path / "a.tar") as tar:
        member = tar.getmembers()[4]
    if damage == "cut in a body":
        raw = raw[: member.offset_data + 100]
    elif damage == "cut at a header":
        raw = raw[: member.offset + 100]
    elif damage == "data behind":
        raw += b"x" * 512
    else:
        raw[5 if damage == "first header" else member.offset + 5] ^= 1
    (tmp_path / "a.tar").write_bytes(raw)
    with pytest.raises(DataError, match=r"a.tar: .*(get it again|move it out)"):
        index_tars(tmp_path)
    assert sorted(contents(tmp_path)) == ["a.tar"]


def test_one_key_twice_or_labels_of_two_kinds(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", flatten(image_label_pairs(range(2))) + [("k0.jpeg", jpeg(5))])
    with pytest.raises(DataError, match="key k0 has two"):
        index_tars(tmp_path)
    make_tar(
        tmp_path / "a.tar", [*flatten(image_label_pairs(range(2))), ("x.jpg", jpeg(1)), ("x.txt", b"dog")]
    )
    with pytest.raises(DataError, match=r"all names: a.tar: k0.cls is 0, a.tar: x.txt is 'dog'"):
        index_tars(tmp_path)
    make_tar(tmp_path / "a.tar", [("x.jpg", jpeg(1)), ("x.cls", b"99999999")])
    with pytest.raises(DataError, match="captions or ids"):
        index_tars(tmp_path)


def test_elsewhere_with_links_for_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    for i in range(3):
        make_tar(tmp_path / "in" / f"{i}.tar", flatten(image_label_pairs(range(5 * i, 5 * i + 5))))
    os.chmod(tmp_path / "in", 0o555)
    before = sorted(contents(tmp_path / "in"))
    one = index_tars(tmp_path / "in", tmp_path / "1", IndexOptions(split="val"))
    two = index_tars(tmp_path / "in", tmp_path / "2", IndexOptions(split="val"), workers=2)
    os.chmod(tmp_path / "in", 0o755)
    assert sorted(contents(tmp_path / "in")) == before
    assert one == two
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert os.readlink(tmp_path / "1" / "0.tar") == "../in/0.tar"
    assert verify(tmp_path / "1").ok


def test_places_that_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no"):
        index_tars(tmp_path)
    with pytest.raises(DataError, match="was written by `shards pack`"):
        index_tars(shards)
    make_tar(tmp_path / "a.tar", flatten(image_label_pairs(range(2))))
    (tmp_path / "a.idx").write_text("v1.2 2\njpg 512 1000")
    with pytest.raises(DataError, match="another program's"):
        index_tars(tmp_path)


def test_a_flipped_bit_is_named_later(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", flatten(image_label_pairs(range(6))))
    index_tars(tmp_path)
    raw = bytearray((tmp_path / "a.tar").read_bytes())
    with tarfile.open(tmp_path / "a.tar") as tar:
        raw[tar.getmember("k2.jpg").offset_data + 50] ^= 1
    (tmp_path / "a.tar").write_bytes(raw)
    assert [(bad.key, bad.reason) for bad in verify(tmp_path).bad] == [
        ("*", "SHA-256 differs from the manifest"),
        ("k2", "image: checksum differs from the index"),
    ]


def test_mixing_is_measured(tmp_path: Path) -> None:
    for i in range(3):  # sorted by class
        make_tar(
            tmp_path / f"{i}.tar",
            flatten([[(f"{n}.jpg", jpeg(n)), (f"{n}.cls", b"%d" % i)] for n in range(4)]),
        )
    done = index_tars(tmp_path)
    # Of three classes of a third each, four shuffled samples hold 3 * (1 - (2/3)^4) = 2.407 on average.
    assert (done.classes_per_tar, round(done.mixed, 3)) == (1.0, 2.407)


def test_packed_anew_they_are_shuffled_and_ours(tmp_path: Path) -> None:
    for i in range(3):
        make_tar(tmp_path / "in" / f"{i}.tar", flatten(image_label_pairs(range(10 * i, 10 * i + 10))))
    index_tars(tmp_path / "in")
    source = packed_source(tmp_path / "in")
    for workers in (1, 2):
        pack(source, "train", tmp_path / str(workers), samples_per_shard=8, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    read = samples_in(tmp_path / "1")
    assert sorted(read) == sorted(samples_in(tmp_path / "in"))
    assert read != samples_in(tmp_path / "in")
    assert Manifest.load(tmp_path / "1").layout == "packed"
    assert json.loads((tmp_path / "1" / MANIFEST_NAME).read_text())["name"] == "in"
    assert simplejpeg.is_jpeg(read[0][0])
    assert np.array([label for _, label in read]).max() == 2
