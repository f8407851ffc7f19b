"""Tiny splits written from raw bodies, storages that fail to order, and what a stream must give."""

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data_shards.format.fields import Sample
from data_shards.format.index import Manifest, ShardEntry, Writer, read_index
from data_shards.format.tar import write_samples
from data_shards.storage.base import Handle, LocalStorage


def write_split(
    out: Path, bodies: list[bytes], labels: list[int], per_shard: int, name: str = "tiny"
) -> None:
    """A split of exactly these bodies, sound or not."""
    out.mkdir(parents=True)
    shards = []
    for number, start in enumerate(range(0, len(bodies), per_shard)):
        rows = range(start, min(start + per_shard, len(bodies)))
        path = out / f"{number:06d}.tar"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        index = write_samples(
            handle, [Sample(f"{i:08d}", {"image": bodies[i], "label": labels[i]}) for i in rows]
        )
        os.close(handle)
        path.with_suffix(".idx").write_bytes(index.tobytes())
        shards.append(
            ShardEntry(
                name=path.name,
                bytes=path.stat().st_size,
                samples=len(index),
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                index_sha256=hashlib.sha256(index.tobytes()).hexdigest(),
            )
        )
    writer = Writer(version=1, seed=0, quality=95, samples_per_shard=per_shard, source="x", source_digest="x")
    classes = tuple(f"c{i}" for i in range(max(labels) + 1))
    Manifest(
        schema=1,
        name=name,
        split="train",
        samples=len(bodies),
        classes=classes,
        shards=tuple(shards),
        writer=writer,
    ).save(out)


def bodies_of(split: Path) -> tuple[list[bytes], list[int]]:
    """Every sample of a split in index order."""
    bodies, labels = [], []
    for shard in Manifest.load(split).shards:
        tar = (split / shard.name).read_bytes()
        for (offset, size, _), label in read_index(split / shard.index_name).tolist():
            bodies.append(tar[offset : offset + size])
            labels.append(label)
    return bodies, labels


class FaultyFile:
    """A file whose reads pass a hook first."""

    def __init__(self, file: Handle, hook: Callable[[], None]) -> None:
        self.file, self.hook, self.size = file, hook, file.size

    def member(self, offset: int, size: int) -> tuple[bytes, bytes]:
        self.hook()
        return self.file.member(offset, size)

    def forget(self, offset: int, size: int) -> None:
        self.file.forget(offset, size)


class FaultyStorage(LocalStorage):
    """A directory that fails on one shard as `hook` says, on every open and every read of it."""

    def __init__(self, directory: Path, shard: str, hook: Callable[[], None]) -> None:
        super().__init__(directory)
        self.shard, self.hook = shard, hook

    def chunks(self, name: str) -> Iterator[bytes]:
        if name == self.shard:
            self.hook()
        return super().chunks(name)

    def open(self, name: str) -> Handle:
        file = super().open(name)
        return FaultyFile(file, self.hook) if name == self.shard else file


def failing(times: int) -> Callable[[], None]:
    """A hook that raises EIO the first `times` times."""
    left, lock = [times], threading.Lock()

    def hook() -> None:
        with lock:
            left[0] -= 1
            if left[0] >= 0:
                raise OSError(errno.EIO, "Input/output error")

    return hook


def slow(seconds: float) -> Callable[[], None]:
    """A hook that takes its time."""
    return lambda: time.sleep(seconds)
