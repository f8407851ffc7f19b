"""Benchmark of a split: how fast this machine and its storage feed a training run, stage by stage.

It measures the code of a run: the same order, reader, decoder and stream.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey
from data_shards.image.decode import decode_crop, resize
from data_shards.image.geometry import ImageSize, TrainTransform
from data_shards.image.pixels import image_size
from data_shards.order.sampling import TrainSampling
from data_shards.storage import storage_for
from data_shards.storage.base import LocalStorage
from data_shards.stream.options import StreamOptions
from data_shards.stream.reader import ShardReader
from data_shards.stream.train import TrainStream
from data_shards.stream.transform import Images

STAGES = ("read", "decode", "resize", "collate")


@dataclass(frozen=True, kw_only=True)
class StorageRate:
    """Reading alone: images and 10^6 bytes a second of wall time; `cold` where the page cache was dropped."""

    img_s: float
    mb_s: float
    threads: int
    cold: bool


@dataclass(frozen=True, kw_only=True)
class StreamRate:
    """A training stream of one process: images a second of wall time, CPU seconds an image, all threads."""

    img_s: float
    cpu_s: float
    threads: int


class Bench:
    """Measures one split; each measurement takes `images` images, in the order of training.

    `split` is a directory or URL, as for TrainStream. DataError: a bad split, an option below 1.
    """

    def __init__(self, split: str | Path, *, image_size: ImageSize, images: int, batch_size: int) -> None:
        for option, value in {"images": images, "batch_size": batch_size}.items():
            if value < 1:
                raise DataError(f"{option} ({value}) must be at least 1")
        self.split, self.batch_size = split, batch_size
        self.geometry = TrainTransform(image_size=image_size)
        with self._stream(threads=1) as stream:
            self.manifest = stream.manifest
            where = stream.order.locate(stream.order.global_batch(0, images))
        self.samples: list[tuple[int, int]] = list(zip(*(part.tolist() for part in where), strict=True))

    def storage(self, threads: int) -> StorageRate:
        """Read the images with several threads, from the storage if the system lets its memory be dropped."""
        storage = storage_for(self.split)
        cold = isinstance(storage, LocalStorage)
        if isinstance(storage, LocalStorage):
            for shard in self.manifest.shards:
                _drop_from_memory(storage.directory / shard.name)
        with closing(ShardReader(self.split, self.manifest)) as reader, ThreadPoolExecutor(threads) as pool:
            began = time.perf_counter()
            sizes = list(pool.map(lambda sample: len(_image(reader, sample)), self.samples))
            seconds = time.perf_counter() - began
        rate = len(sizes) / seconds
        return StorageRate(img_s=rate, mb_s=sum(sizes) / seconds / 1e6, threads=threads, cold=cold)

    def stages(self) -> dict[str, float]:
        """CPU seconds an image of each of STAGES, in one thread."""
        spent = np.zeros(len(STAGES))
        batch = np.zeros((self.batch_size, 3, *self.geometry.sides), dtype=np.uint8)
        with closing(ShardReader(self.split, self.manifest)) as reader:
            for position, sample in enumerate(self.samples):
                steps = self._steps(reader, sample, position, batch)
                times = [time.thread_time(), *(time.thread_time() for _ in steps)]
                spent += np.diff(times)
        return dict(zip(STAGES, (spent / len(self.samples)).tolist(), strict=True))

    def _steps(
        self, reader: ShardReader, sample: tuple[int, int], position: int, batch: np.ndarray
    ) -> Iterator[None]:
        """What a decoding thread does to one image, with a pause after each stage."""
        body = _image(reader, sample)
        yield
        geometry = self.geometry.geometry(*image_size(body), DrawKey(0, position))
        pixels = decode_crop(body, geometry)
        yield
        image = resize(pixels, geometry)
        yield
        batch[position % len(batch)] = image
        yield

    def stream(self, threads: int) -> StreamRate:
        """Take batches as fast as they come, once the first is there."""
        batches = max(1, len(self.samples) // self.batch_size)
        with self._stream(threads) as stream:
            iterator = iter(stream)
            next(iterator)
            began, cpu = time.perf_counter(), time.process_time()
            for _ in islice(iterator, batches):
                pass
            wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        count = batches * self.batch_size
        return StreamRate(img_s=count / wall_s, cpu_s=cpu_s / count, threads=threads)

    def _stream(self, threads: int) -> TrainStream:
        sampling = TrainSampling(seed=0, global_batch_size=self.batch_size, micro_batch_size=self.batch_size)
        return TrainStream(self.split, sampling, Images(self.geometry), StreamOptions(threads=threads))


def _image(reader: ShardReader, sample: tuple[int, int]) -> bytes:
    body = reader.read(*sample, ["image"])["image"]
    assert isinstance(body, bytes)
    return body


def _drop_from_memory(path: Path) -> None:
    """Ask the system to forget its pages of a file, which it may decline."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
