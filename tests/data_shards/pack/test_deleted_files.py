"""A pack that damaged sources have stopped goes on once they are repaired or deleted."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.format.samples import Source
from data_shards.pack.progress import BAD_NAME, read_bad
from data_shards.pack.sources.folders import image_folder
from data_shards.pack.sources.imagenet import MAP_22K, imagenet22k
from data_shards.pack.write import pack, pack_task
from data_shards.verify.repair import repair
from tests.data_shards.image_folders import by_key, contents, jpeg, make_folder

COUNT, PER_SHARD = 60, 7
BAD = range(0, 60, 5)  # 12 of 60, more than the 10 that are always allowed


def path_of(root: Path, number: int) -> Path:
    return root / "train" / f"class-{number % 3}" / f"{number:04d}.jpg"


def image(number: int) -> bytes:
    return jpeg(number, 24 + 8 * (number % 7))  # as make_folder writes it


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A folder with damaged images whose pack into OUT was stopped by them."""
    root = make_folder(tmp_path / "in", {"train": COUNT})
    for number in BAD:
        path_of(root, number).write_bytes(b"x")
    with pytest.raises(DataError, match=r"1[12] damaged sources, more than max_bad allows"):
        run(root, tmp_path / "out")
    return root


def run(root: Path, out: Path, **options: object) -> Manifest:
    return pack(image_folder(root), "train", out, samples_per_shard=PER_SHARD, **options)


def refused(out: Path) -> list[int]:
    return sorted(int(source.source[-8:-4]) for source in read_bad(out))


@pytest.mark.parametrize("repaired", [BAD, BAD[:2], BAD[5:]])
def test_repaired_files_give_what_packing_from_scratch_gives(
    stopped: Path, tmp_path: Path, repaired: Sequence[int]
) -> None:
    for number in repaired:
        path_of(stopped, number).write_bytes(image(number))
    manifest = run(stopped, tmp_path / "out")
    run(stopped, tmp_path / "scratch")
    assert contents(tmp_path / "out") == contents(tmp_path / "scratch")
    assert manifest.bad_sources == len(BAD) - len(repaired)
    assert (tmp_path / "out" / BAD_NAME).exists() == (len(repaired) < len(BAD))


def test_deleted_files_leave_every_other_sample_where_it_was(stopped: Path, tmp_path: Path) -> None:
    gone = refused(tmp_path / "out")
    whole = run(make_folder(tmp_path / "sound", {"train": COUNT}), tmp_path / "whole")
    for number in gone:
        path_of(stopped, number).unlink()
    manifest = run(stopped, tmp_path / "out")
    assert (manifest.samples, manifest.bad_sources) == (COUNT - len(BAD), len(BAD))
    assert manifest.writer == whole.writer
    keys = by_key(tmp_path / "whole")
    for source in read_bad(tmp_path / "out"):
        del keys[source.key]
    assert by_key(tmp_path / "out") == keys
    before = contents(tmp_path / "out")
    assert run(stopped, tmp_path / "out") == manifest  # finished: found again, though the list is shorter
    assert contents(tmp_path / "out") == before


def test_some_repaired_some_deleted(stopped: Path, tmp_path: Path) -> None:
    for place, number in enumerate(refused(tmp_path / "out")):
        if place % 2:
            path_of(stopped, number).unlink()
        else:
            path_of(stopped, number).write_bytes(image(number))
    run(stopped, tmp_path / "out")
    expected = {number: image(number) for number in range(COUNT) if number not in refused(tmp_path / "out")}
    bodies = by_key(tmp_path / "out").values()
    assert sorted(bodies) == sorted(body + b"%d" % (number % 3) for number, body in expected.items())


@pytest.mark.parametrize("tasks", [2, 3])
def test_tasks_go_on_whatever_their_number_was(stopped: Path, tmp_path: Path, tasks: int) -> None:
    gone = refused(tmp_path / "out")
    for number in gone[:6]:
        path_of(stopped, number).unlink()
    for number in gone[6:]:
        path_of(stopped, number).write_bytes(image(number))
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    run(stopped, tmp_path / "out")
    for i in range(tasks):
        options = {"samples_per_shard": PER_SHARD}
        pack_task(image_folder(stopped), "train", tmp_path / "copy", (i, tasks), **options)
    assert contents(tmp_path / "copy") == contents(tmp_path / "out")


def delete_sound(root: Path, bad: int) -> None:
    path_of(root, 1).unlink()


def delete_both(root: Path, bad: int) -> None:
    path_of(root, 1).unlink()
    path_of(root, bad).unlink()


def rename(root: Path, bad: int) -> None:
    path_of(root, bad).rename(path_of(root, bad).with_name("new.jpg"))


def add(root: Path, bad: int) -> None:
    path_of(root, bad).with_name("new.jpg").write_bytes(jpeg(1))


@pytest.mark.parametrize("change", [delete_sound, delete_both, rename, add])
def test_another_change_says_what_to_delete(stopped: Path, tmp_path: Path, change: object) -> None:
    assert callable(change)
    before = contents(tmp_path / "out")
    change(stopped, refused(tmp_path / "out")[0])
    with pytest.raises(DataError, match=r"out: the list of the source has changed .* delete .*out") as caught:
        run(stopped, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "out") == before


def test_bytes_per_shard_keep_their_cuts(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", {"train": COUNT})
    for number in BAD:
        path_of(root, number).write_bytes(b"x")
    size = {"bytes_per_shard": 20_000}
    with pytest.raises(DataError, match="max_bad"):
        pack(image_folder(root), "train", tmp_path / "out", **size)
    shutil.copytree(root, tmp_path / "copy")
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    for number in refused(tmp_path / "out"):
        path_of(root, number).unlink()
    pack(image_folder(root), "train", tmp_path / "out", **size)
    pack(image_folder(tmp_path / "copy"), "train", tmp_path / "other", max_bad=1.0, **size)
    one, other = contents(tmp_path / "out"), contents(tmp_path / "other")
    assert one.keys() == other.keys()
    assert all(one[name] == other[name] for name in one)


def test_a_finished_pack_is_repaired_without_the_deleted_files(stopped: Path, tmp_path: Path) -> None:
    for number in refused(tmp_path / "out"):
        path_of(stopped, number).unlink()
    run(stopped, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "000003.tar").write_bytes(b"damaged")
    assert repair(tmp_path / "out", source=image_folder(stopped)).remaining == ()
    assert contents(tmp_path / "out") == before


def listed_22k(root: Path, numbers: list[int]) -> Source:
    pairs = [[f"class-{number % 3}/{number:04d}.jpg", number % 3] for number in numbers]
    (root / MAP_22K.format("train")).write_text(json.dumps(pairs))
    return imagenet22k(root)


def test_lines_deleted_from_a_list(tmp_path: Path) -> None:
    """The list's order is nobody's rule, and the files stay."""
    root = make_folder(tmp_path, {"fall11_whole": COUNT})
    numbers = [number * 7 % COUNT for number in range(COUNT)]
    for number in BAD:
        (root / "fall11_whole" / f"class-{number % 3}" / f"{number:04d}.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="max_bad"):
        pack(listed_22k(root, numbers), "train", tmp_path / "out", samples_per_shard=PER_SHARD)
    gone = refused(tmp_path / "out")
    left = listed_22k(root, [number for number in numbers if number not in gone])
    manifest = pack(left, "train", tmp_path / "out", samples_per_shard=PER_SHARD)
    assert (manifest.samples, manifest.bad_sources) == (COUNT - len(BAD), len(BAD))
