"""SimMIM: pre-training without labels; an encoder sees masked images, and one layer predicts their pixels.

Legend: B images of h x w pixels, p patch side, m mask patch side, s stride of the last map, C channels.
Xie et al. 2022; the normalised target is SwinV2's (Liu et al. 2022).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import ExpertParallel
from parallel.ranks.mesh import Mesh
from swin_moe.backbone.backbone import Backbone, total_loss
from swin_moe.backbone.model import construct
from swin_moe.config import ModelConfig
from swin_moe.errors import require
from swin_moe.heads.simmim_config import SimMIMConfig
from swin_moe.moe.layer import MoEStats
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import fold_in, uniform

MASK_SITE = -1  # the sites of a model count from 0


class SimMIMOutput(NamedTuple):
    """The loss over the hidden pixels of all images, what it is made of, and the statistics of MoE layers."""

    loss: Tensor  # scalar, fp32
    error: Tensor  # (B,) fp32: an image's absolute errors of hidden pixels, summed; a mean over channels
    mask: Tensor  # (B, h, w) bool: the hidden pixels
    prediction: Tensor  # (B, in_chans, h, w)
    moe: dict[str, MoEStats]
    features: Tensor | None = None  # (B, C): of the images without a mask, where an evaluation needs them

    @property
    def aux_loss(self) -> Tensor:
        """The weighted balance losses of all layers, summed: scalar."""
        return total_loss(self.moe, self.loss.device)


def draw_masks(keys: Tensor, rows: int, columns: int, ratio: float) -> Tensor:
    """Which mask patches of each image are hidden: keys (B,) -> (B, rows, columns) bool.

    ceil(ratio * rows * columns) of them, those with the lowest draws of the image's own key: the same on any
    layout of ranks.
    """
    draws = uniform(fold_in(keys, MASK_SITE), rows * columns)
    hidden = draws.argsort(dim=1, stable=True)[:, : math.ceil(ratio * rows * columns)]
    mask = torch.zeros(draws.shape, dtype=torch.bool, device=keys.device)
    return mask.scatter_(1, hidden, True).view(-1, rows, columns)


def enlarge(mask: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Repeat every element factor x factor times and cut to size: (B, r, c) -> (B, height, width)."""
    return mask.repeat_interleave(factor, 1).repeat_interleave(factor, 2)[:, :height, :width]


def normalize_target(images: Tensor, window: int) -> Tensor:
    """Normalise each pixel by the mean and std of the window around it: (B, c, h, w) -> the same, fp32.

    The variance is unbiased, and pixels outside of the image are not counted. A rectangle's mean is the mean
    over rows of the mean over columns, which takes 2 * window terms a pixel instead of window^2.
    """
    mean, std = _moments(images, window)
    return (images.float() - mean) / std


def _moments(images: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the window around each pixel: (B, c, h, w) twice, fp32."""
    x = images.float()
    mean = _box_mean(x, window)
    count = _box_count(x.shape[2], window, x.device)[:, None] * _box_count(x.shape[3], window, x.device)
    variance = (_box_mean(x.square(), window) - mean.square()) * (count / (count - 1).clamp_min(1))
    return mean, (variance.clamp_min(0) + 1e-6).sqrt()


def _box_mean(x: Tensor, window: int) -> Tensor:
    half = window // 2
    x = F.avg_pool2d(x, (window, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, window), stride=1, padding=(0, half), count_include_pad=False)


def _box_count(side: int, window: int, device: torch.device) -> Tensor:
    """Pixels of a window that lie inside of a side, around each of its pixels: (side,)."""
    at = torch.arange(side, device=device)
    return (at + window // 2).clamp_max(side - 1) - (at - window // 2).clamp_min(0) + 1


class SimMIM(nn.Module):
    """Any backbone with a mask token, and a linear decoder of the hidden pixels.

    Args:
        model: the encoder.
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
        self.encoder = Backbone(model, placement)
        self.stride = self.encoder.strides[-1]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, model.embed_dim))
        pixels = self.stride**2 * model.in_chans  # of a token
        self.decoder = nn.Conv2d(self.encoder.channels[-1], pixels, kernel_size=1)

    def forward(self, images: Tensor, keys: Tensor, call: RoutingOverrides | None = None) -> SimMIMOutput:
        """Hide patches of images (B, in_chans, h, w) by their keys (B,), and predict them.

        `call` is what the MoE layers do otherwise than configured in this pass.
        """
        height, width = images.shape[2:]
        size, p = self.config.mask_patch_size, self.patch_size
        hidden = draw_masks(keys, -(-height // size), -(-width // size), self.config.mask_ratio)
        mask = enlarge(hidden, size // p, -(-height // p), -(-width // p))  # (B, h / p, w / p)
        token = self.mask_token.view(-1)
        features, statistics = self.encoder.forward_masked(images, keys, mask, token, call)
        prediction = F.pixel_shuffle(self.decoder(features.permute(0, 3, 1, 2)), self.stride)
        prediction = prediction[:, :, :height, :width]
        pixels = enlarge(hidden, size, height, width)
        error = self.errors(prediction, images, pixels)
        return SimMIMOutput(
            loss=error.sum() / (pixels.sum() + 1e-5),
            error=error,
            mask=pixels,
            prediction=prediction,
            moe=statistics,
        )

    def errors(self, prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Absolute errors of each image's hidden pixels, summed: (B, c, h, w) twice, (B, h, w) -> (B,) fp32.

        Of a pixel, the mean over its channels.
        """
        window = self.config.norm_target_window
        target = normalize_target(images, window) if window else images.float()
        error = (prediction.float() - target).abs() * mask[:, None]
        return error.sum((1, 2, 3)) / images.shape[1]

    def fill_in(self, output: SimMIMOutput, images: Tensor) -> Tensor:
        """The images (B, c, h, w) with the predicted pixels where they were hidden, fp32."""
        prediction, window = output.prediction.float(), self.config.norm_target_window
        if window:  # the prediction is of normalised pixels
            mean, std = _moments(images, window)
            prediction = prediction * std + mean
        return torch.where(output.mask[:, None], prediction, images.float())


def build_simmim(
    model: ModelConfig,
    config: SimMIMConfig,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    sharded: bool = False,
    exchange: ExchangeOptions | None = None,
) -> SimMIM:
    """A model to pre-train, with initial weights that depend on (model, seed) alone; see `build_model`."""

    def make(model: ModelConfig, placement: ExpertParallel | None) -> SimMIM:
        return SimMIM(model, config, placement)

    return construct(
        make, model, seed=seed, mesh=mesh, sharded=sharded, exchange=exchange or ExchangeOptions()
    )
