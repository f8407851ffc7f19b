"""What tars of others hold beside plain samples: links, hidden members, any suffix; and the true reasons."""

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.errors import DataError
from data_shards.format.image_names import IMAGE_SUFFIXES
from data_shards.format.index import MANIFEST_NAME
from data_shards.pack.indexing import index_tars
from data_shards.pack.sources.folders import image_folder
from data_shards.pack.sources.packed import packed_source
from data_shards.pack.write import pack
from data_shards.verify.verify import verify
from tests.data_shards.image_folders import bodies_by_index, jpeg
from tests.data_shards.tars import Member, flatten, image_label_pairs, make_tar
from tests.messages import assert_each_names


def add_links(path: Path, links: list[tuple[str, bytes, str]]) -> None:
    """Append links to a tar: name, type, target."""
    with tarfile.open(path, "a") as tar:
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)


@pytest.mark.parametrize("prefix", ["", "./", "set/"])
def test_hard_links_stand_for_their_targets(tmp_path: Path, prefix: str) -> None:
    stored = [("k0.jpg", jpeg(0)), ("k0.cls", b"0"), ("k1.jpg", jpeg(1)), ("k1.cls", b"1"), ("blob", jpeg(2))]
    make_tar(tmp_path / "a.tar", [(prefix + name, body) for name, body in stored])
    links = {"k2.jpg": "k1.jpg", "k2.cls": "k0.cls", "k3.jpg": "k2.jpg", "k3.cls": "k1.cls"}
    links |= {"k4.jpg": "blob", "k4.cls": "k1.cls"}
    add_links(tmp_path / "a.tar", [(prefix + a, tarfile.LNKTYPE, prefix + b) for a, b in links.items()])
    done = index_tars(tmp_path)
    assert done.bad == ()
    found = [(jpeg(0), 0), (jpeg(1), 0), (jpeg(1), 1), (jpeg(1), 1), (jpeg(2), 1)]
    assert sorted(bodies_by_index(tmp_path)) == sorted(found)
    assert verify(tmp_path, decode=True).ok


@pytest.mark.parametrize(
    ("kind", "target", "reason"),
    [
        (
            tarfile.LNKTYPE,
            "other.jpg",
            "x.jpg is a hard link to other.jpg, which is not before it in this tar",
        ),
        (tarfile.LNKTYPE, "x.jpg", "x.jpg is a hard link to x.jpg, which is not before it in this tar"),
        (tarfile.SYMTYPE, "k0.jpg", "x.jpg is a symbolic link to k0.jpg; write the tar with --dereference"),
        (tarfile.FIFOTYPE, "", "x.jpg is a sparse file or no file; write the tar without --sparse"),
    ],
)
def test_links_that_cannot_be_followed_are_listed(
    tmp_path: Path, kind: bytes, target: str, reason: str
) -> None:
    make_tar(tmp_path / "a.tar", [*flatten(image_label_pairs(range(4))), ("x.cls", b"1")])
    add_links(tmp_path / "a.tar", [("x.jpg", kind, target)])
    done = index_tars(tmp_path)
    assert [(bad.key, bad.reason) for bad in done.bad] == [("x", reason)]
    assert done.manifest.samples == 4


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, "WEBP", "Jpg", "TIF"])
def test_every_suffix_of_an_image_is_indexed(tmp_path: Path, suffix: str) -> None:
    make_tar(tmp_path / "a.tar", flatten(image_label_pairs(range(5), suffix)))
    index_tars(tmp_path)
    assert bodies_by_index(tmp_path) == [(jpeg(n), n % 3) for n in range(5)]


def test_a_tar_that_pack_wrote_is_indexed_without_its_manifest(tmp_path: Path) -> None:
    root = tmp_path / "in" / "train" / "c"
    root.mkdir(parents=True)
    for n, kind in enumerate(("webp", "png", "gif", "bmp", "tiff", "ppm", "jpeg")):
        Image.fromarray(np.full((8, 8, 3), n, dtype=np.uint8)).save(root / f"{n}.{kind}")
    pack(image_folder(tmp_path / "in"), "train", tmp_path / "out")
    index = (tmp_path / "out" / "000000.idx").read_bytes()
    for name in (MANIFEST_NAME, "000000.idx"):
        (tmp_path / "out" / name).unlink()
    assert index_tars(tmp_path / "out").bad == ()
    assert (tmp_path / "out" / "000000.idx").read_bytes() == index


@pytest.mark.parametrize(
    "name",
    ["._k0.jpg", "._k0.cls", "a/._k0.jpg", "__MACOSX/k0.jpg", ".ipynb_checkpoints/k0.jpg", "@eaDir/k0.jpg"],
)
def test_hidden_members_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    make_tar(tmp_path / "a.tar", [(name, b"\0\5\x16\7"), *flatten(image_label_pairs(range(4)))])
    (tmp_path / "._a.tar").write_bytes(b"\0\5\x16\7")
    done = index_tars(tmp_path)
    assert bodies_by_index(tmp_path) == [(jpeg(n), n % 3) for n in range(4)]
    assert done.bad == ()
    assert_each_names(done.notes, (f"{tmp_path}: ", ": 2, such as ._a.tar"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is an empty file, not a tar"),
        (b"<html><body>404</body></html>" * 50, "is an HTML page .*, not a tar"),
        (
            gzip.compress(b"x" * 2000, mtime=0),
            "is a gzip file, and an index points into the tar itself; unpack it first",
        ),
        (b"\x28\xb5\x2f\xfd" + bytes(2000), "is a Zstandard file, and an index points .*; unpack it first"),
        (b"PK\x03\x04" + b"x" * 2000, "is a zip archive, not a tar"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            r"is a Git LFS pointer \(run: git lfs pull\), not a tar",
        ),
    ],
)
def test_what_is_no_tar_is_called_what_it_is(tmp_path: Path, body: bytes, message: str) -> None:
    make_tar(tmp_path / "a.tar", flatten(image_label_pairs(range(2))))
    (tmp_path / "b.tar").write_bytes(body)
    with pytest.raises(DataError, match=f"b.tar: {message}") as caught:
        index_tars(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.heic", b"x"), ("b.heic", b"x")], "skipped members whose suffix is of no image and no label: 2"),
        ([("a.jpg", b"x"), ("b.jpg", b"x")], r"\(2 of an image without a label, such as 0.tar: a\)"),
        (
            [("a.cls", b"0"), ("b.heic", b"x")],
            "1 of a label without an image, such as 0.tar: a; of the members",
        ),
        ([("a.1.jpg", b"x"), ("a.1.cls", b"0")], "skipped members with a dot in their key.*: 2, such as"),
        (
            [("img/a.jpg", b"x"), ("lab/a.cls", b"0")],
            "img/a: an image without a label, which is 0.tar: lab/a",
        ),
        ([("a.jpg", b"x"), ("a.cls", b"0")], "undecodable image"),
        ([("._a.jpg", b"x")], "skipped hidden or system files"),
        ([], "they have no members"),
    ],
)
def test_tars_without_a_sample_say_why(tmp_path: Path, members: list[Member], reason: str) -> None:
    make_tar(tmp_path / "0.tar", members)
    with pytest.raises(DataError, match=f"no sample in its tars .*{reason}") as caught:
        index_tars(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_halves_of_a_key_in_two_tars(tmp_path: Path) -> None:
    make_tar(tmp_path / "images.tar", [(f"{n}.jpg", jpeg(n)) for n in range(3)])
    make_tar(tmp_path / "labels.tar", [(f"{n}.cls", b"0") for n in range(3)])
    with pytest.raises(DataError, match=r"images.tar: 0: .* which is labels.tar: 0; both must be in one tar"):
        index_tars(tmp_path)


def test_a_directory_without_a_tar_says_what_is_there(tmp_path: Path) -> None:
    make_tar(tmp_path / "train" / "a.TAR", flatten(image_label_pairs(range(4))))
    make_tar(tmp_path / "val" / "a.tar", flatten(image_label_pairs(range(4))))
    assert index_tars(tmp_path / "train").manifest.samples == 4
    with pytest.raises(DataError, match=r"holds no \*.tar; name .*/val as the directory"):
        index_tars(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no \*.tar but 1 compressed ones, such as a.tar.gz"):
        index_tars(tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        index_tars(tmp_path / "nowhere")
    index_tars(tmp_path / "val")
    with pytest.raises(DataError, match=r"train and .*/val are both the split train"):
        packed_source(tmp_path)


def test_labels_that_no_sample_has_are_said(tmp_path: Path) -> None:
    make_tar(
        tmp_path / "a.tar", flatten([[(f"{n}.jpg", jpeg(n)), (f"{n}.cls", b"%d" % n)] for n in (1, 2, 4)])
    )
    assert_each_names(index_tars(tmp_path).notes, ("train: 2 of 5 classes", ": 0, 3"))
