"""Predictors measured in turns: decoding and the model apart, by the number of images of a call.

Legend: B images of a call, h and w of a model's images.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from data_shards.errors import DataError
from launcher.bench.images import BenchImages
from launcher.bench.latency import Latency
from launcher.config.errors import ConfigError
from launcher.deploy.predictor import Predictor

WARM_UP = 3  # calls of each model and batch that do not count
Show = Callable[[int, int], None]  # of calls: done, total


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The times of one model at one batch size.

    `decode` is from the files of B images to their tensor (B, 3, h, w), in one thread. `run` is from there to
    the logits on the CPU. `both` is the sum of the two, call by call.
    """

    model: str
    batch: int  # B
    decode: Latency
    run: Latency
    both: Latency
    ratio: float  # of the median of `run` to that of the first model

    @property
    def img_s(self) -> float:
        """Images a second of the model alone."""
        return 1e3 * self.batch / self.run.mean_ms

    @property
    def decode_img_s(self) -> float:
        """Images a second that one thread decodes."""
        return 1e3 * self.batch / self.decode.mean_ms

    @property
    def decode_threads(self) -> int:
        """The fewest threads that decode as fast as the model runs."""
        return math.ceil(self.decode.mean_ms / self.run.mean_ms)

    def record(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        rates = {
            "img_s": self.img_s,
            "decode_img_s": self.decode_img_s,
            "decode_threads": self.decode_threads,
        }
        return {**asdict(self), **rates}


def check_images(predictors: Sequence[Predictor], images: BenchImages) -> None:
    """Decode every image once.

    Raises:
        ConfigError: one cannot be decoded.
    """
    for name, body in zip(images.names, images.bodies, strict=True):
        try:
            predictors[0].transform(body)
        except DataError as error:
            raise ConfigError(f"{name}: {error}; leave it out of --files") from error


def measure(
    predictors: Sequence[Predictor], images: BenchImages, batches: Sequence[int], rounds: int, show: Show
) -> list[Measured]:
    """The times of each model at each batch size, batch by batch.

    The models take turns, a call each, so that whatever else the machine does hits all of them alike.

    Args:
        predictors: the models; ratios are to the first one.
        images: which all models get, in the same order.
        batches: sizes B.
        rounds: calls of each model that count.
        show: is told the progress.
    """
    total = len(batches) * len(predictors) * (WARM_UP + rounds)
    done, found = 0, []
    for batch in batches:
        times: list[list[tuple[float, float]]] = [[] for _ in predictors]
        for number in range(WARM_UP + rounds):
            bodies = images.batch(batch, number)
            for predictor, calls in zip(predictors, times, strict=True):
                calls.append(one_call(predictor, bodies))
                done += 1
                show(done, total)
        found += of_times([one.source for one in predictors], batch, [calls[WARM_UP:] for calls in times])
    return found


def one_call(predictor: Predictor, bodies: Sequence[bytes]) -> tuple[float, float]:
    """Seconds of decoding and of the model for B images."""
    began = time.perf_counter()
    tensors = torch.stack([predictor.transform(body) for body in bodies])
    decoded = time.perf_counter()
    predictor.run(tensors)
    return decoded - began, time.perf_counter() - decoded


def of_times(
    names: Sequence[str], batch: int, times: Sequence[Sequence[tuple[float, float]]]
) -> list[Measured]:
    """What follows from the seconds of decoding and of the model in each call of each model."""
    found: list[Measured] = []
    for name, calls in zip(names, times, strict=True):
        run = Latency.of([run_s for _, run_s in calls])
        found.append(
            Measured(
                model=name,
                batch=batch,
                decode=Latency.of([decode_s for decode_s, _ in calls]),
                run=run,
                both=Latency.of([decode_s + run_s for decode_s, run_s in calls]),
                ratio=run.p50_ms / (found[0].run if found else run).p50_ms,
            )
        )
    return found
