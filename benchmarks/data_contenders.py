"""What benchmarks/data.py compares: three ways of reading, of decoding and of doing both.

Every contender does its work once on the same data and says on how many images.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image

from data_shards.format.index import Manifest
from data_shards.format.rng import DrawKey
from data_shards.image.decode import decode_image
from data_shards.image.geometry import TrainTransform, draw_crop, draw_flip
from data_shards.order.global_order import GlobalOrder
from data_shards.order.sampling import TrainSampling
from data_shards.stream.options import StreamOptions
from data_shards.stream.reader import ShardReader
from data_shards.stream.train import TrainStream
from data_shards.stream.transform import LabelledImages

TRANSFORM, BATCH = TrainTransform(image_size=192), 64
EPOCHS = 4  # of raw reading a round, so that opening the data set does not count
MEAN, STD = (
    np.array(v, np.float32)[:, None, None] * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
)
Contender = Callable[[], int]


@dataclass(frozen=True)
class Data:
    """The packed split, its tars, litdata's chunks if it is there, and the distinct JPEGs."""

    split: Path
    tars: list[str]
    chunks: Path | None
    bodies: list[bytes]
    samples: int


# Raw reading: compressed bytes and label of every sample, in each one's own kind of training order.


def read_ours(data: Data) -> int:
    """The global order, an index, `pread`, the checksum of every sample."""
    manifest = Manifest.load(data.split)
    reader, order = ShardReader(data.split, manifest), GlobalOrder(manifest.samples_per_shard, seed=0)
    count = 0
    for start in range(0, EPOCHS * data.samples, 1024):
        where = order.locate(order.global_batch(start, min(1024, EPOCHS * data.samples - start)))
        for shard, row in zip(*(part.tolist() for part in where), strict=True):
            count += bool(reader.read(shard, row))
    reader.close()
    return count


def read_webdataset(data: Data) -> int:
    """Tars from front to back through its pipeline, without its shuffle buffer."""
    dataset = webdataset.WebDataset(data.tars, shardshuffle=False).to_tuple("jpg", "cls")
    return sum(1 for _ in range(EPOCHS) for _ in dataset)


def read_litdata(data: Data) -> int:
    """Shuffled, as in training."""
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(data.chunks), shuffle=True)
    return sum(1 for _ in range(EPOCHS) for _ in dataset)


# Decode and crop: random resized crop to S, antialiased, and the flip.


def by_pil(body: bytes, position: int) -> np.ndarray:
    """What torchvision does on PIL images, with our draws: (3, H, W) uint8."""
    image = Image.open(io.BytesIO(body)).convert("RGB")
    crop = draw_crop(image.height, image.width, DrawKey(0, position), TRANSFORM)
    image = image.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
    image = image.resize(TRANSFORM.sides[::-1], Image.Resampling.BICUBIC)
    if draw_flip(DrawKey(0, position), TRANSFORM):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).transpose(2, 0, 1)


def each(decode: Callable[[bytes, int], Any], data: Data) -> int:
    """Every distinct JPEG once."""
    for position, body in enumerate(data.bodies):
        decode(body, position)
    return len(data.bodies)


# End to end: batches of uint8 (or normalised fp32) pictures and labels in this process.


def stream_ours(data: Data, threads: int) -> int:
    """TrainStream."""
    sampling = TrainSampling(seed=0, global_batch_size=BATCH, micro_batch_size=BATCH)
    count = 0
    with TrainStream(
        data.split, sampling, LabelledImages(TRANSFORM), StreamOptions(threads=threads)
    ) as stream:
        for batch in stream:
            count += len(batch["label"])
            if count >= data.samples // BATCH * BATCH:
                return count
    raise AssertionError("the stream has no end")


def stream_webdataset(data: Data, normalise: bool) -> int:
    """The pipeline of webdataset's documentation: shuffle buffer, PIL, batches made in one worker process."""
    positions = iter(range(1 << 60))

    def picture(sample: tuple[bytes, bytes]) -> tuple[np.ndarray, int]:
        pixels = by_pil(sample[0], next(positions))
        return (pixels.astype(np.float32) - MEAN) / STD if normalise else pixels, int(sample[1])

    def collate(samples: list[tuple[np.ndarray, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        pictures, labels = zip(*samples, strict=True)
        return torch.from_numpy(np.stack(pictures)), torch.tensor(labels)

    dataset = (
        webdataset.WebDataset(data.tars, shardshuffle=100).shuffle(1000).to_tuple("jpg", "cls").map(picture)
    )
    loader = webdataset.WebLoader(
        dataset.batched(BATCH, collation_fn=collate), batch_size=None, num_workers=1
    )
    return sum(len(labels) for _, labels in loader)


def contenders(data: Data) -> dict[str, dict[str, Contender]]:
    """By group; ours is the first of each."""
    raw = {"ours": lambda: read_ours(data), "webdataset": lambda: read_webdataset(data)}
    if data.chunks:
        raw["litdata"] = lambda: read_litdata(data)
    decode: dict[str, Contender] = {
        "ours": lambda: each(
            lambda body, position: decode_image(body, TRANSFORM, DrawKey(0, position)), data
        ),
        "PIL": lambda: each(by_pil, data),
        "full decode": lambda: each(lambda body, _: simplejpeg.decode_jpeg(body), data),
    }
    whole: dict[str, Contender] = {
        "ours": lambda: stream_ours(data, threads=1),
        "ours, 2 threads": lambda: stream_ours(data, threads=2),
        "webdataset + PIL": lambda: stream_webdataset(data, normalise=False),
        "webdataset + PIL, fp32": lambda: stream_webdataset(data, normalise=True),
    }
    return {"raw read": raw, "decode + crop": decode, "end to end": whole}
