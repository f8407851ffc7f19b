"""Damaged sources: listed, never packed, and nothing else is any different for them."""

import shutil
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.pack.progress import BAD_NAME, read_bad
from data_shards.pack.sources.folders import image_folder
from data_shards.pack.sources.registry import Source
from data_shards.pack.write import pack, pack_task
from data_shards.verify.verify import verify
from tests.data_shards.image_folders import by_key, contents, make_folder

COUNT, PER_SHARD = 60, 7
BROKEN = {3: "cut", 17: "empty", 20: "text", 33: "missing", 59: "cut"}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Source, Source]:
    """The same folder sound and with five damaged images; the missing one disappears after it was listed."""
    make_folder(tmp_path / "sound", {"train": COUNT})
    shutil.copytree(tmp_path / "sound", tmp_path / "bad")
    source = image_folder(tmp_path / "bad")
    for number, how in BROKEN.items():
        path = tmp_path / "bad" / "train" / f"class-{number % 3}" / f"{number:04d}.jpg"
        path.write_bytes({"cut": path.read_bytes()[:-300], "text": b"hello"}.get(how, b""))
        if how == "missing":
            path.unlink()
    return image_folder(tmp_path / "sound"), source


def test_they_are_listed_and_every_other_sample_is_where_it_was(
    folders: tuple[Source, Source], tmp_path: Path
) -> None:
    sound, bad = folders
    whole = pack(sound, "train", tmp_path / "a", samples_per_shard=PER_SHARD)
    manifest = pack(bad, "train", tmp_path / "b", samples_per_shard=PER_SHARD)
    assert (manifest.samples, manifest.bad_sources, whole.bad_sources) == (COUNT - 5, 5, 0)
    assert not (tmp_path / "a" / BAD_NAME).exists()
    listed = read_bad(tmp_path / "b")
    reasons = {int(source.source[-8:-4]): source.reason.partition(" ")[0] for source in listed}
    assert reasons == {3: "undecodable", 17: "empty", 20: "undecodable", 33: "No", 59: "undecodable"}
    assert [source.label for source in listed] == [int(source.source[-8:-4]) % 3 for source in listed]
    left = by_key(tmp_path / "a")
    for source in listed:
        del left[source.key]
    assert by_key(tmp_path / "b") == left
    assert verify(tmp_path / "b", decode=True).ok


def test_they_change_nothing_about_who_packs(folders: tuple[Source, Source], tmp_path: Path) -> None:
    _, bad = folders
    pack(bad, "train", tmp_path / "a", samples_per_shard=PER_SHARD)
    pack(bad, "train", tmp_path / "b", samples_per_shard=PER_SHARD, workers=2)
    for task in (2, 0, 1):
        pack_task(bad, "train", tmp_path / "c", (task, 3), samples_per_shard=PER_SHARD)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_a_repaired_pack_remembers_them(folders: tuple[Source, Source], tmp_path: Path) -> None:
    _, bad = folders
    out = tmp_path / "out"
    pack(bad, "train", out, samples_per_shard=PER_SHARD)
    before = contents(out)
    (out / "000002.idx").unlink()
    pack(bad, "train", out, samples_per_shard=PER_SHARD)
    assert contents(out) == before


def test_an_interrupted_pack_remembers_them(folders: tuple[Source, Source], tmp_path: Path) -> None:
    _, bad = folders
    pack(bad, "train", tmp_path / "a", samples_per_shard=PER_SHARD)

    def stop(done: int, total: int) -> None:
        if done > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(bad, "train", tmp_path / "b", samples_per_shard=PER_SHARD, progress=stop)
    pack(bad, "train", tmp_path / "b", samples_per_shard=PER_SHARD, workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_shard_of_nothing_but_damage_has_no_files(tmp_path: Path) -> None:
    source = image_folder(make_folder(tmp_path / "in", {"train": 12}))
    keep = source.splits["train"].describe(5)
    for path in (tmp_path / "in" / "train").rglob("*.jpg"):
        if not str(path).endswith(keep):
            path.write_bytes(b"")
    pack(source, "train", tmp_path / "a", samples_per_shard=4, max_bad=1.0)
    for task in (1, 0):
        pack_task(source, "train", tmp_path / "b", (task, 2), samples_per_shard=4, max_bad=1.0)
    manifest = Manifest.load(tmp_path / "a")
    assert (len(manifest.shards), manifest.samples, manifest.bad_sources) == (1, 1, 11)
    assert len(contents(tmp_path / "a")) == 4  # a tar, an index, the manifest, the list
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_too_many_are_an_error_until_they_are_allowed(tmp_path: Path) -> None:
    source = image_folder(make_folder(tmp_path / "in", {"train": 30}))
    paths = sorted((tmp_path / "in").rglob("*.jpg"))
    for path in paths[:11]:
        path.write_bytes(b"hello")
    with pytest.raises(
        DataError, match=r"11 damaged sources, more than max_bad allows \(10 of 30\): class-0"
    ):
        pack(source, "train", tmp_path / "out")
    assert len(read_bad(tmp_path / "out")) == 11
    assert pack(source, "train", tmp_path / "out", max_bad=0.5).bad_sources == 11
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="not one sample of the source can be read"):
        pack(source, "train", tmp_path / "none", max_bad=1.0)


def test_a_path_that_would_break_the_list_is_quoted(tmp_path: Path) -> None:
    source = image_folder(make_folder(tmp_path / "in", {"train": 3}))
    path = tmp_path / "in" / "train" / "class-0" / "a\tb\n\udcff.jpg"
    path.write_bytes(b"x")
    source = image_folder(tmp_path / "in")
    pack(source, "train", tmp_path / "out")
    assert [bad.source for bad in read_bad(tmp_path / "out")] == ["class-0/a\tb\n\udcff.jpg"]
    assert len((tmp_path / "out" / BAD_NAME).read_text().splitlines()) == 2
