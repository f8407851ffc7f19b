"""From the uint8 crops of `ImageViews` to float32 views, on the model's device.

    augment = ViewAugment(ViewColours(), seed=seed, mean=mean, std=std, device=device)
    first, second = augment(batch["image"], batch.positions)

The operations and their order are BYOL's (Grill et al. 2020, appendix B): brightness, contrast, saturation
and hue in an order of the view's own, gray, blur, solarize, normalize. They are drawn from (seed, position,
view) on the host, so that it knows which views an operation touches, and never waits for the device.
Values are those of PIL; hues have steps of 2 degrees (hsv.py).

Legend: B samples of V views, of H x W pixels.
"""

from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from data_shards.augment.blur import gaussian_blur
from data_shards.augment.hsv import HUES
from data_shards.augment.normalize import Normalize
from data_shards.augment.operations import operate
from data_shards.augment.photometric import turn_hues
from data_shards.augment.randaugment import ImageOp
from data_shards.augment.view_options import FULL_SIDE, ViewColours
from data_shards.format.rng import Purpose
from data_shards.format.rng_tensor import keys, uniforms
from parallel.ranks.host import send

JITTERS = (ImageOp.BRIGHTNESS, ImageOp.CONTRAST, ImageOp.COLOR)  # the fourth is the hue, which is no ImageOp
HUE = len(JITTERS)
ORDERS = tuple(permutations(range(HUE + 1)))
JITTERED, ORDER, STRENGTHS, GRAY, BLURRED, SIGMA, SOLARIZED, DRAWS = 0, 1, slice(2, 6), 6, 7, 8, 9, 10


class ViewPlan(NamedTuple):
    """What is done to one view of each sample, in this order, on the host.

    Column i of `ops` (B, 4) int64 of `ImageOp`, `arguments` (B, 4) float32, `turned` (B, 4) bool and `hues`
    (B, 4) int64 is the i-th operation: one of `ops`, or the steps that are added to the hue where `turned`.
    `gray`, `blurred` and `solarized` (B,) bool say which samples are; `sigmas` (B,) float64 is in pixels.
    """

    ops: Tensor
    arguments: Tensor
    turned: Tensor
    hues: Tensor
    gray: Tensor
    blurred: Tensor
    sigmas: Tensor
    solarized: Tensor


def draw_view(
    colours: ViewColours, seed: int, positions: Tensor, view: int, sides: tuple[int, int]
) -> ViewPlan:
    """The plan of a view of the samples at `positions` (B,) int64; `sides` of the views, (H, W) in pixels."""
    draws = uniforms(keys(Purpose.VIEW, seed, positions, view), DRAWS)  # (B, n) float64
    strengths = torch.tensor(
        [colours.brightness, colours.contrast, colours.saturation, colours.hue], dtype=torch.float64
    )
    low, high = (1 - strengths).clamp(min=0), 1 + strengths
    low[HUE], high[HUE] = -colours.hue * HUES, colours.hue * HUES
    values = low + draws[:, STRENGTHS] * (high - low)  # (B, 4) of brightness, contrast, saturation, hue
    order = torch.tensor(ORDERS)[(draws[:, ORDER] * len(ORDERS)).long()]  # (B, 4)
    works = ((draws[:, JITTERED] < colours.jitter_prob)[:, None] & (strengths > 0)).gather(1, order)
    arguments = values.gather(1, order)
    ops = torch.tensor([*JITTERS, ImageOp.NOTHING])[order]
    sigma_low, sigma_high = colours.blur_sigma
    sigmas = sigma_low + draws[:, SIGMA] * (sigma_high - sigma_low)
    return ViewPlan(
        ops=torch.where(works, ops, ImageOp.NOTHING),
        arguments=arguments.float(),
        turned=works & (order == HUE),
        hues=arguments.round().long(),
        gray=draws[:, GRAY] < colours.gray_prob,
        blurred=draws[:, BLURRED] < colours.blur_prob[view],
        sigmas=sigmas * min(sides) / FULL_SIDE,
        solarized=draws[:, SOLARIZED] < colours.solarize_prob[view],
    )


def change_colours(images: Tensor, plan: ViewPlan, threshold: int) -> None:
    """Carry a plan out on images (B, 3, H, W) uint8 on any device, in place."""
    columns = (plan.ops, plan.arguments, plan.turned, plan.hues)
    for ops, arguments, turned, hues in zip(*(column.unbind(1) for column in columns), strict=True):
        _operate(images, ops, arguments)
        turn_hues(images, turned, hues)
    nothing = torch.full_like(plan.ops[:, 0], ImageOp.NOTHING)
    zeros = torch.zeros_like(plan.arguments[:, 0])
    _operate(images, torch.where(plan.gray, ImageOp.COLOR, nothing), zeros)  # a saturation of 0
    _blur(images, plan)
    _operate(images, torch.where(plan.solarized, ImageOp.SOLARIZE, nothing), zeros + threshold)


def _operate(images: Tensor, ops: Tensor, arguments: Tensor) -> None:
    fill = images.new_zeros(3)  # of warps, of which there are none here
    operate(images, ops, arguments, fill, "bilinear")


def _blur(images: Tensor, plan: ViewPlan) -> None:
    rows = plan.blurred.nonzero()[:, 0]
    if len(rows):
        at = send(rows, images.device)
        images.index_copy_(0, at, gaussian_blur(images.index_select(0, at), plan.sigmas[rows]))


class ViewAugment:
    """Changes the colours of views on `device` and normalizes them. It has no state, as `Augment`.

    `mean` and `std` normalize values in 0 ... 1. Without `colours` no colour changes.
    """

    def __init__(
        self,
        colours: ViewColours | None,
        *,
        seed: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device | str = "cpu",
    ) -> None:
        self.colours, self.seed, self.device = colours, seed, torch.device(device)
        self.normalize = Normalize(mean, std, self.device)

    def __call__(self, images: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Views (B, V, 3, H, W) uint8 -> V of (B, 3, H, W) float32 on the device.

        `positions` (B,) int64 are those of the samples in the stream, on the host, where the stream has put
        them. The arguments are left as they are.
        """
        images = images.to(self.device, non_blocking=True)
        return tuple(self.view(one, positions, view) for view, one in enumerate(images.unbind(1)))

    def view(self, images: Tensor, positions: Tensor, view: int) -> Tensor:
        """The view of this number alone, of images (B, 3, H, W) uint8."""
        if positions.device.type != "cpu":
            raise ValueError(f"positions are on {positions.device}; pass them on the CPU, as the stream does")
        images = images.to(self.device, non_blocking=True).clone(memory_format=torch.channels_last)
        if self.colours is not None:
            sides = images.shape[-2], images.shape[-1]
            plan = draw_view(self.colours, self.seed, positions, view, sides)
            change_colours(images, plan, self.colours.solarize_threshold)
        return self.normalize(images)
