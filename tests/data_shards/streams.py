"""Streams by flat keywords, a tiny one, and what it must give by the definition of the order."""

from collections.abc import Iterable
from dataclasses import fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.format.rng import DrawKey
from data_shards.image.decode import decode_image
from data_shards.image.geometry import EvalTransform, ImageTransform, TrainTransform
from data_shards.order.sampling import TrainSampling
from data_shards.storage.base import Storage
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling, ReadOptions, StreamOptions
from data_shards.stream.train import TrainStream
from data_shards.stream.transform import LabelledImages
from data_shards.stream.webdataset import WebDatasetStream

SEED, INTERLEAVE, SHUFFLE_BUFFER = 1, 4, 8
STEPS = 5  # of 24 positions: an epoch of 103 samples and some more
TRANSFORM = TrainTransform(image_size=8)
QUICK = ReadOptions(deadline_s=30)


def _take(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: options.pop(name) for name in names if name in options}


def _of(kind: type, options: dict[str, Any]) -> Any:
    """An object of `kind` from those of the options that are its fields, which leave `options`."""
    return kind(**_take(options, [field.name for field in fields(kind)]))


def train_stream(
    split: str | Path | Storage, transform: ImageTransform = TRANSFORM, **options: Any
) -> TrainStream:
    """A TrainStream; `options` are fields of TrainSampling and StreamOptions."""
    return TrainStream(
        split, _of(TrainSampling, options), LabelledImages(transform), StreamOptions(**options)
    )


def webdataset_stream(
    tars: str, transform: ImageTransform = TRANSFORM, num_classes: int = 5, **options: Any
) -> WebDatasetStream:
    """A WebDatasetStream; `options` are fields of TrainSampling and StreamOptions."""
    sampling = _of(TrainSampling, options)
    reads = LabelledImages(transform)
    return WebDatasetStream(tars, sampling, reads, StreamOptions(**options), num_classes=num_classes)


def eval_stream(split: str | Path | Storage, **options: Any) -> EvalStream:
    """An EvalStream; `options` are its own, or of its sampling, its transform or StreamOptions."""
    options = {"image_size": 8} | options
    sampling, transform = _of(EvalSampling, options), _of(EvalTransform, options)
    own = _take(options, ("classes", "bad_samples"))
    return EvalStream(split, sampling, LabelledImages(transform), StreamOptions(**options), **own)


def tiny_stream(split: Path | Storage, rank: int = 0, ranks: int = 1, **options: Any) -> TrainStream:
    """A training stream of 24 samples a step, in 4 segments through buffers of 8 samples."""
    defaults = {"seed": SEED, "global_batch_size": 24, "micro_batch_size": 24 // ranks, "read": QUICK}
    defaults |= {"interleave": INTERLEAVE, "shuffle_buffer": SHUFFLE_BUFFER}
    return train_stream(split, dp_rank=rank, dp_size=ranks, **(defaults | options))


Seen = dict[int, tuple[bytes, int]]  # position -> pixels, label


def seen(stream: TrainStream, steps: int = STEPS) -> Seen:
    """What a stream gives at each position, for some optimizer steps; the stream is closed."""
    samples = {}
    with stream:
        for batch in islice(stream, steps * stream.grad_accum_steps):
            rows = zip(batch.positions.tolist(), batch["image"].numpy(), batch["label"].tolist(), strict=True)
            assert batch.weights.all()
            samples |= {position: (image.tobytes(), label) for position, image, label in rows}
    return samples


def expected(
    stream: TrainStream, bodies: list[bytes], labels: list[int], bad: set[int], steps: int = STEPS
) -> Seen:
    """The same from the definition: a bad sample's position has the next intact one of its buffer."""
    order, geometry = stream.order, stream.transform.geometry
    starts = np.cumsum(order.samples_per_shard) - order.samples_per_shard
    positions = np.arange(3 * order.num_samples)
    shard, row = order.locate(positions)
    at = (starts[shard] + row).tolist()
    samples = {}
    for p in range(steps * stream.global_batch_size):
        epoch, q = divmod(p, order.num_samples)
        segment, rank = q % order.interleave, q // order.interleave
        first = rank - rank % order.shuffle_buffer
        ranks = range(first, first + order.shuffle_buffer)
        turn = [r for r in ranks if r >= rank] + [r for r in ranks if r < rank]
        candidates = [epoch * order.num_samples + r * order.interleave + segment for r in turn]
        end = (epoch + 1) * order.num_samples
        inside = [i for i in candidates if i < end] + [*range(p, end), *range(end - order.num_samples, p)]
        sample = next(at[i] for i in inside if at[i] not in bad)
        samples[p] = _pixels(bodies[sample], geometry, p), labels[sample]
    return samples


@lru_cache(maxsize=10_000)  # a sample at a position: tests of many faults compare with the same few hundred
def _pixels(body: bytes, geometry: ImageTransform, position: int) -> bytes:
    return decode_image(body, geometry, DrawKey(SEED, position)).tobytes()
