"""SimMIM: pre-training without labels; an encoder sees masked images, and one layer predicts their pixels.

Legend: B images of h x w pixels, p patch side, m mask patch side, s stride of the last map, C channels.
Xie et al. 2022; the normalised target is SwinV2's (Liu et al. 2022).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.expert import ExpertParallel
from swin_moe.config import ModelConfig, require
from swin_moe.initialize import initialize
from swin_moe.model import SwinTransformer
from swin_moe.moe import MoEStats
from swin_moe.randomness import fork, uniform

MASK_SITE = -1  # the sites of a model count from 0


@dataclass(frozen=True, kw_only=True)
class SimMIMConfig:
    """What is hidden and what is predicted.

    `mask_patch_size` is in pixels, a multiple of the model's patch; `mask_ratio` of an image's mask patches
    are hidden, rounded up. `norm_target_window` is the side of the window of pixels by whose mean and
    deviation a target is normalised (SwinV2: 47), 0 for the pixels as they are.
    """

    mask_patch_size: int = 32
    mask_ratio: float = 0.6
    norm_target_window: int = 0

    def __post_init__(self) -> None:
        require(
            self.mask_patch_size >= 1, f"simmim.mask_patch_size ({self.mask_patch_size}) must be at least 1"
        )
        require(0 < self.mask_ratio <= 1, f"simmim.mask_ratio ({self.mask_ratio}) must lie in (0, 1]")
        window = self.norm_target_window
        require(
            window == 0 or (window >= 3 and window % 2 == 1),
            f"simmim.norm_target_window ({window}) must be 0 or an odd number above 1",
        )


class SimMIMOutput(NamedTuple):
    """The loss (scalar, fp32), the predicted pixels (B, in_chans, h, w), and statistics of MoE layers."""

    loss: Tensor
    prediction: Tensor
    moe: dict[str, MoEStats]


def draw_masks(keys: Tensor, rows: int, columns: int, ratio: float) -> Tensor:
    """Which mask patches of each image are hidden: keys (B,) -> (B, rows, columns) bool.

    ceil(ratio * rows * columns) of them, those with the lowest draws of the image's own key: the same on any
    layout of ranks.
    """
    draws = uniform(fork(keys, MASK_SITE), rows * columns)
    hidden = draws.argsort(dim=1, stable=True)[:, : math.ceil(ratio * rows * columns)]
    mask = torch.zeros(draws.shape, dtype=torch.bool, device=keys.device)
    return mask.scatter_(1, hidden, True).view(-1, rows, columns)


def enlarge(mask: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Repeat every element factor x factor times and cut to size: (B, r, c) -> (B, height, width)."""
    return mask.repeat_interleave(factor, 1).repeat_interleave(factor, 2)[:, :height, :width]


def normalize_target(images: Tensor, window: int) -> Tensor:
    """Each pixel less the mean of the window around it, over its deviation: (B, c, h, w) -> the same, fp32.

    The variance is unbiased, and pixels outside of the image are not counted. A rectangle's mean is the mean
    over rows of the mean over columns, which takes 2 * window terms a pixel instead of window^2.
    """
    x = images.float()
    mean = _box_mean(x, window)
    count = _box_count(x.shape[2], window, x.device)[:, None] * _box_count(x.shape[3], window, x.device)
    variance = (_box_mean(x.square(), window) - mean.square()) * (count / (count - 1).clamp_min(1))
    return (x - mean) / (variance.clamp_min(0) + 1e-6).sqrt()


def _box_mean(x: Tensor, window: int) -> Tensor:
    half = window // 2
    x = F.avg_pool2d(x, (window, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, window), stride=1, padding=(0, half), count_include_pad=False)


def _box_count(side: int, window: int, device: torch.device) -> Tensor:
    """Pixels of a window that lie inside of a side, around each of its pixels: (side,)."""
    at = torch.arange(side, device=device)
    return (at + window // 2).clamp_max(side - 1) - (at - window // 2).clamp_min(0) + 1


class SimMIM(nn.Module):
    """Any Swin Transformer with a mask token, and a linear decoder of the hidden pixels.

    Args:
        model: the encoder; its head is not built.
        config: what is hidden and predicted.
        placement: where the experts are; needed when the model has any.
    """

    def __init__(
        self, model: ModelConfig, config: SimMIMConfig, placement: ExpertParallel | None = None
    ) -> None:
        super().__init__()
        require(
            config.mask_patch_size % model.patch_size == 0,
            f"model.patch_size ({model.patch_size}) must divide simmim.mask_patch_size "
            f"({config.mask_patch_size})",
        )
        self.config, self.patch_size = config, model.patch_size
        stages = len(model.depths)
        self.stride = model.patch_size * 2 ** (stages - 1)
        self.encoder = SwinTransformer(model, placement)
        self.encoder.head = nn.Identity()  # type: ignore[assignment]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, model.embed_dim))
        self.decoder = nn.Conv2d(model.stage_dim(stages - 1), self.stride**2 * model.in_chans, kernel_size=1)

    def forward(self, images: Tensor, keys: Tensor) -> SimMIMOutput:
        """Hide patches of images (B, in_chans, h, w) by their keys (B,), and predict them."""
        height, width = images.shape[2:]
        size, p = self.config.mask_patch_size, self.patch_size
        hidden = draw_masks(keys, -(-height // size), -(-width // size), self.config.mask_ratio)
        mask = enlarge(hidden, size // p, -(-height // p), -(-width // p))  # (B, h / p, w / p)
        token = self.mask_token.view(-1)
        features, statistics = self.encoder.forward_masked(images, keys, mask, token)
        prediction = F.pixel_shuffle(self.decoder(features.permute(0, 3, 1, 2)), self.stride)
        prediction = prediction[:, :, :height, :width]
        loss = self.loss(prediction, images, enlarge(hidden, size, height, width))
        return SimMIMOutput(loss=loss, prediction=prediction, moe=statistics)

    def loss(self, prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Mean absolute error of the hidden pixels: (B, c, h, w) twice, (B, h, w) bool -> scalar, fp32."""
        window = self.config.norm_target_window
        target = normalize_target(images, window) if window else images.float()
        error = (prediction.float() - target).abs() * mask[:, None]
        return error.sum() / (mask.sum() + 1e-5) / images.shape[1]


def build_simmim(model: ModelConfig, config: SimMIMConfig, *, seed: int = 0) -> SimMIM:
    """A model to pre-train on one rank, with initial weights that depend on (model, seed) alone."""
    placement = ExpertParallel.on_one_rank(model.moe.num_experts) if model.moe else None
    simmim = SimMIM(model, config, placement)
    initialize(simmim, seed=seed, std=model.init_std, zero_branch_norms=model.norm == "post")
    return simmim
