"""What a whole run takes: hours, GPU-hours and price of its steps.

Evaluation, saves and failures are not in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import DataError
from launcher.config.duration import parse_duration
from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Device
from launcher.plan.search.candidate import Candidate
from launcher.plan.time.published import RUNS
from launcher.validation.rules import steps_in
from launcher.validation.train_sets import images_per_epoch

HOUR_S, MILLION = 3600.0, 1e6


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the cost of a run depends on beside its steps."""

    epoch_images: int | None = None  # None where nobody has counted them
    price_per_gpu_hour: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """Of all steps of a run at the predicted speed."""

    steps: int
    hours: float
    gpu_hours: float
    price: float | None

    def text(self, share: float = 1.0) -> str:
        """In words, at a share of the predicted speed."""
        price = "" if self.price is None else f", {self.price / share:,.0f}"
        return f"{self.hours / share:,.1f} h, {self.gpu_hours / share:,.0f} GPU-hours{price}"


def epoch_images(config: RunConfig) -> int | None:
    """Images of an epoch by the manifests of data.train, where those directories are on this machine."""
    if not all(Path(place).is_dir() for place in config.data.train_places.values()):
        return None
    try:
        return images_per_epoch(config.data)
    except DataError:
        return None


def run_cost(candidate: Candidate, terms: Terms) -> RunCost | None:
    """What a layout's run costs; None where its length is not known."""
    config = candidate.config
    is_known = terms.epoch_images is not None or parse_duration(config.train.duration).unit != "epoch"
    if candidate.time is None or not is_known:
        return None
    steps = steps_in(config.train.duration, config, terms.epoch_images)
    hours = steps * candidate.time.step_s / HOUR_S
    price = terms.price_per_gpu_hour
    gpu_hours = hours * candidate.ranks
    return RunCost(
        steps=steps, hours=hours, gpu_hours=gpu_hours, price=None if price is None else price * gpu_hours
    )


def price_per_million(candidate: Candidate, terms: Terms) -> float | None:
    """The price of training on a million images."""
    if candidate.time is None or terms.price_per_gpu_hour is None:
        return None
    return terms.price_per_gpu_hour * candidate.ranks * MILLION / candidate.time.images_s / HOUR_S


def run_cost_lines(candidate: Candidate, terms: Terms, device: Device) -> Iterator[str]:
    """Time and price of the run, as predicted and at the speeds that other runs reached."""
    duration, cost = candidate.config.train.duration, run_cost(candidate, terms)
    million, price = price_per_million(candidate, terms), terms.price_per_gpu_hour
    if million is not None:
        yield f"price: {million:.2f} a million images at {price:g} a GPU-hour"
    if cost is None:
        place = ", ".join(candidate.config.data.train_places.values())
        yield (
            f"time to train: {duration} of how many images? give --images N, as {place} has no manifest here"
        )
        return
    yield f"time to train ({duration}, {cost.steps:,} steps): {cost.text()}"
    first, share = RUNS[device][0], RUNS[device][0].low
    yield f"  at {share * 100:.0f} % of that speed, the least of {first.runs}: {cost.text(share)}"
