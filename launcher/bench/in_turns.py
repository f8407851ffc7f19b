"""Models measured in turns: decoding and the model apart, by the number of images of a call.

Legend: B images of a call.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_shards.errors import DataError
from launcher.bench.images import BenchImages
from launcher.bench.latency import Latency
from launcher.bench.measurable import Measurable
from launcher.config.errors import ConfigError

WARM_UP = 3  # calls of each model and batch that do not count
Show = Callable[[int, int], None]  # of calls: done, total


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The times of one model at one batch size.

    `decode` and `run` are those of `Measurable`, the former in one thread. `both` is their sum, call by call.
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


def check_images(model: Measurable, images: BenchImages) -> None:
    """Decode every image once.

    Raises:
        ConfigError: one cannot be decoded.
    """
    for name, body in zip(images.names, images.bodies, strict=True):
        try:
            model.decode([body])
        except DataError as error:
            raise ConfigError(f"{name}: {error}; leave it out of --files") from error


def measure(
    models: Sequence[Measurable], images: BenchImages, batches: Sequence[int], rounds: int, show: Show
) -> list[Measured]:
    """The times of each model at each batch size, batch by batch.

    The models take turns, a call each, so that whatever else the machine does hits all of them alike.

    Args:
        models: what is measured; ratios are to the first one.
        images: which all models get, in the same order.
        batches: sizes B.
        rounds: calls of each model that count.
        show: is told the progress.
    """
    total = len(batches) * len(models) * (WARM_UP + rounds)
    done, found = 0, []
    for batch in batches:
        times: list[list[tuple[float, float]]] = [[] for _ in models]
        for number in range(WARM_UP + rounds):
            bodies = images.batch(batch, number)
            for model, calls in zip(models, times, strict=True):
                calls.append(one_call(model, bodies))
                done += 1
                show(done, total)
        found += of_times([model.name for model in models], batch, [calls[WARM_UP:] for calls in times])
    return found


def one_call(model: Measurable, bodies: Sequence[bytes]) -> tuple[float, float]:
    """Seconds of decoding and of the model for B images."""
    began = time.perf_counter()
    examples = model.decode(bodies)
    decoded = time.perf_counter()
    model.run(examples)
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
