"""A file is complete or absent; locks hold between handles and are let go with them."""

import os
import socket
from pathlib import Path

import pytest

from parallel.durable import (
    Sync,
    atomic_file,
    atomic_write,
    is_at,
    lock_file,
    sweep_temporaries,
)


@pytest.mark.parametrize(("sync", "syncs"), [("none", 0), ("file", 1), ("directory", 2)])
def test_a_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: Sync, syncs: int) -> None:
    descriptors: list[int] = []
    monkeypatch.setattr(os, "fsync", descriptors.append)
    path = tmp_path / "record.json"
    path.write_text("old")
    atomic_write(path, "new", sync)
    assert path.read_text() == "new"
    assert len(descriptors) == syncs
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def write_half(path: Path) -> None:
    with atomic_file(path) as handle:
        os.write(handle, b"half")
        raise OSError("full")


def test_a_body_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("old")
    with pytest.raises(OSError, match="full"):
        write_half(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("record.json", "old")]


def test_temporaries_of_some_files_are_removed(tmp_path: Path) -> None:
    left = tmp_path / f".latest.{socket.gethostname()}.1.tmp"
    for path in (left, tmp_path / ".other.there.1.tmp", tmp_path / "latest"):
        path.touch()
    sweep_temporaries(tmp_path, lambda name: name == "latest")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.there.1.tmp", "latest"]


def test_a_lock_excludes_other_handles_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("a") as first, path.open("a") as second:
        assert lock_file(first)
        assert not lock_file(second, wait=False)
        assert not lock_file(second, shared=True, wait=False)
        first.close()
        assert lock_file(second, shared=True, wait=False)
        with path.open("a") as third:
            assert lock_file(third, shared=True)


def test_whether_a_handle_is_still_at_its_path(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    with path.open("w") as file:
        assert is_at(file, path)
        assert is_at(file.fileno(), path)
        path.unlink()
        assert not is_at(file, path)
        path.touch()
        assert not is_at(file, path)
