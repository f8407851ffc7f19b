"""Photo-metric distortion: brightness, contrast, saturation and hue of each sample, by draws of its own.

The rule is mmsegmentation's PhotoMetricDistortion, which is that of "SSD: Single Shot MultiBox Detector" (Liu
et al., ECCV 2016, section 3.6) without its exchange of channels. Each of the four changes a sample with
probability 1/2, on values of 8 bits, clipped and then rounded down after each. The order is brightness,
contrast, saturation, hue, or brightness, saturation, hue, contrast, with probability 1/2 each.

All tables are made on the host, and the device computes with integers, so that every device gives the same
images. Legend: B images of H x W pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data_shards.augment.hsv import HUES, to_hsv, to_rgb
from data_shards.augment.lut import look_up
from data_shards.errors import DataError
from data_shards.format.rng import Purpose
from data_shards.format.rng_tensor import keys, uniforms
from parallel.ranks.host import send

APPLY_PROB = 0.5


class PhotometricPlan(NamedTuple):
    """What is done to each sample, on the host; the tables (B, 256) uint8 say what becomes of a value.

    `before` and `after` are for all values, and come first and last. Between them, `saturation` is for the
    saturations of the samples `saturated` (B,) bool, and then `hue` (B,) int64 is added where `turned` (B,)
    bool. A conversion there and back rounds, so that a `hue` of 0 is not the same as none.
    """

    before: Tensor
    saturated: Tensor
    saturation: Tensor
    turned: Tensor
    hue: Tensor
    after: Tensor


@dataclass(frozen=True, kw_only=True)
class PhotometricDistortion:
    """The ranges of the draws; 0, or 1 ... 1 of a factor, turns that part off. DataError out of range.

    brightness: a real number in -brightness ... brightness is added to every value, of 0 ... 255.
    contrast: the range of the factor of every value.
    saturation: the range of the factor of every saturation.
    hue: a whole number in -hue ... hue - 1 is added to every hue, in steps of 2 degrees.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18

    def __post_init__(self) -> None:
        if not 0 <= self.brightness <= 255:
            raise DataError(f"brightness ({self.brightness}) must be in 0 ... 255")
        for option in ("contrast", "saturation"):
            low, high = getattr(self, option)
            if not 0 <= low <= high:
                raise DataError(f"{option} {(low, high)} must be 0 <= low <= high, for example (0.5, 1.5)")
        if not 0 <= self.hue <= HUES // 2:
            raise DataError(f"hue ({self.hue}) must be in 0 ... {HUES // 2} steps of 2 degrees")

    def draw(self, seed: int, positions: Tensor) -> PhotometricPlan:
        """The plan of the samples at `positions` (B,) int64, on the host."""
        draws = uniforms(keys(Purpose.PHOTOMETRIC, seed, positions), 9)  # (B, 9) float64
        first = draws[:, 0] < 0.5
        chosen = draws[:, 1:5] < APPLY_PROB  # brightness, contrast, saturation, hue
        shift = _between(draws[:, 5], (-self.brightness, self.brightness)) * chosen[:, 0]
        contrast, saturation = (
            torch.where(chosen[:, i], _between(draws[:, 5 + i], limits), 1.0)
            for i, limits in ((1, self.contrast), (2, self.saturation))
        )
        hue = (draws[:, 8] * (2 * self.hue)).floor().long() - self.hue
        brightness = _tables(torch.ones_like(shift), shift)
        contrasts = _tables(contrast, torch.zeros_like(contrast))
        return PhotometricPlan(
            before=torch.where(first[:, None], contrasts.gather(1, brightness.long()), brightness),
            saturated=chosen[:, 2] & (self.saturation != (1.0, 1.0)),
            saturation=_tables(saturation, torch.zeros_like(saturation)),
            turned=chosen[:, 3] & (self.hue > 0),
            hue=hue,
            after=torch.where(first[:, None], _identity(), contrasts),
        )


def _between(draws: Tensor, limits: tuple[float, float]) -> Tensor:
    return limits[0] + draws * (limits[1] - limits[0])


def _identity() -> Tensor:
    """The table that changes nothing: (256,) uint8."""
    return torch.arange(256).to(torch.uint8)


def _tables(factor: Tensor, summand: Tensor) -> Tensor:
    """What becomes of the values 0 ... 255, computed in float32: (B,) and (B,) -> (B, 256) uint8."""
    values = torch.arange(256, dtype=torch.float32)
    return (values * factor.float()[:, None] + summand.float()[:, None]).clamp(0.0, 255.0).to(torch.uint8)


def distort(images: Tensor, plan: PhotometricPlan) -> None:
    """Distort images (B, 3, H, W) uint8 on any device, in place; the plan is on the host."""
    _map_values(images, plan.before)
    _map_saturations(images, plan)
    turn_hues(images, plan.turned, plan.hue)
    _map_values(images, plan.after)


def _map_values(images: Tensor, tables: Tensor) -> None:
    rows = (tables != _identity()).any(1).nonzero()[:, 0]
    if len(rows):
        at, tables = send(rows, images.device), send(tables[rows], images.device)
        mapped = look_up(images.index_select(0, at), tables[:, None].expand(-1, 3, -1))
        images.index_copy_(0, at, mapped)


def _map_saturations(images: Tensor, plan: PhotometricPlan) -> None:
    rows = plan.saturated.nonzero()[:, 0]
    if len(rows):
        at, tables = send(rows, images.device), send(plan.saturation[rows].int(), images.device)
        hue, saturation, value = to_hsv(images.index_select(0, at))
        saturation = tables.gather(1, saturation.flatten(1).long()).view_as(saturation)
        images.index_copy_(0, at, to_rgb(hue, saturation, value))


def turn_hues(images: Tensor, turned: Tensor, steps: Tensor) -> None:
    """Add `steps` (B,) int64 of 2 degrees to the hues of the images `turned` (B,) bool, in place.

    images (B, 3, H, W) uint8 on any device; the others on the host.
    """
    rows = turned.nonzero()[:, 0]
    if len(rows):
        at, shift = send(rows, images.device), send(steps[rows].int(), images.device)
        hue, saturation, value = to_hsv(images.index_select(0, at))
        images.index_copy_(0, at, to_rgb((hue + shift[:, None, None]) % HUES, saturation, value))
