"""Feature distillation: a student predicts the last map of a frozen teacher, token by token.

Wei et al. 2022, "Contrastive Learning Rivals Masked Image Modeling in Fine-tuning via Feature Distillation"
(arXiv:2205.14141), section 3. The target is the map after the teacher's own last norm, normalised once more
without learned parameters ("whitening"): no scale and no shift of a teacher reaches the loss.

Legend: B images of h x w pixels, H x W tokens and C channels of the student's map, H' x W' and C' of the
teacher's, k x k tokens of the teacher that a token of the student predicts.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import ExpertParallel
from parallel.ranks.mesh import Mesh
from swin_moe.backbone.backbone import Backbone, total_loss
from swin_moe.backbone.model import construct
from swin_moe.config import ModelConfig
from swin_moe.heads.distill_config import (
    DistillConfig,
    Grid,
    has_normalised_map,
    student_stage,
    tokens_per_side,
)
from swin_moe.moe.layer import MoEStats
from swin_moe.moe.overrides import RoutingOverrides

WHITEN_EPS = 1e-5  # of the variance (the reference's layer norm)


class DistillOutput(NamedTuple):
    """The loss of a batch, what it is made of, and the statistics of MoE layers."""

    loss: Tensor  # scalar, fp32
    error: Tensor  # (B,) fp32: of an image, the mean over tokens and channels
    cosine: Tensor  # (B,) fp32: of prediction and target, the mean over an image's tokens
    spread: Tensor  # (B,) fp32: standard deviation of the target over an image's tokens, mean over channels
    features: Tensor  # (B, C): the student's map, normalised, its mean over the tokens
    moe: dict[str, MoEStats]

    @property
    def aux_loss(self) -> Tensor:
        """The weighted balance losses of all layers, summed: scalar."""
        return total_loss(self.moe, self.loss.device)


def whitened(target: Tensor) -> Tensor:
    """Each token normalised over its channels: (..., C') -> the same, fp32."""
    return F.layer_norm(target.float(), target.shape[-1:], eps=WHITEN_EPS)


def resized_map(target: Tensor, grid: Grid) -> Tensor:
    """A map of another grid, bilinear, averaged where it shrinks: (B, H', W', C') -> (B, *grid, C') fp32."""
    if tuple(target.shape[1:3]) == grid:
        return target.float()
    x = target.float().permute(0, 3, 1, 2)
    return F.interpolate(x, grid, mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def smooth_l1(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """The loss of each image, mean over tokens and channels: (B, H', W', C') twice -> (B,) fp32."""
    losses = F.smooth_l1_loss(prediction.float(), target.float(), beta=beta, reduction="none")
    return losses.mean((1, 2, 3))


class TokenProjector(nn.Module):
    """A linear layer on each token to k x k tokens of another width, each at its place.

    Args:
        dim: C.
        out_dim: C'.
        factor: k.
        norm: normalise the tokens before, as a map needs that the backbone does not normalise.
    """

    def __init__(self, dim: int, out_dim: int, factor: int = 1, *, norm: bool = False) -> None:
        super().__init__()
        self.factor, self.out_dim = factor, out_dim
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.proj = nn.Linear(dim, factor**2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, k H, k W, C')."""
        batch, height, width, _ = x.shape
        k = self.factor
        x = self.proj(self.norm(x)).view(batch, height, width, k, k, self.out_dim)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, k * height, k * width, self.out_dim)


class Distiller(nn.Module):
    """A student, and a projector of its map to the teacher's width.

    With `config.stage` the stages behind it are neither computed nor trained.

    Args:
        model: the student.
        config: what is compared.
        width: C' of the teacher.
        grid: (H', W') of the teacher.
        placement: where the experts are; needed when the model has any.

    Raises:
        ModelError: the student has no such stage, or the grids do not go together.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: DistillConfig,
        width: int,
        grid: Grid,
        placement: ExpertParallel | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.stage = student_stage(model, config)
        factor = tokens_per_side(model.stage_resolution(self.stage), grid, config)
        self.encoder = Backbone(model, placement)
        self.is_last = self.stage == len(model.depths) - 1
        norm = not has_normalised_map(model, config)
        self.projector = TokenProjector(model.stage_dim(self.stage), width, factor, norm=norm)
        for module in () if self.is_last else (*self.encoder.layers[self.stage + 1 :], self.encoder.norm):
            module.requires_grad_(False)

    def forward(
        self, images: Tensor, keys: Tensor, target: Tensor, call: RoutingOverrides | None = None
    ) -> DistillOutput:
        """Predict the teacher's map.

        Args:
            images: (B, 3, h, w), normalised for the student.
            keys: (B,), see `Backbone.forward_features`.
            target: (B, H', W', C'), the teacher's map after its last norm.
            call: what the MoE layers do otherwise than configured in this pass.
        """
        features = self.encoder.forward_features(images, keys, call, stages=self.stage + 1)
        tokens = self.encoder.norm(features.maps[-1]) if self.is_last else features.maps[-1]
        prediction = self.projector(tokens)
        wanted = self.target_of(target, (prediction.shape[1], prediction.shape[2]))
        error = smooth_l1(prediction, wanted, self.config.beta)
        return DistillOutput(
            loss=error.mean(),
            error=error,
            cosine=F.cosine_similarity(prediction.float(), wanted, dim=-1).mean((1, 2)),
            spread=wanted.flatten(1, 2).std(1, correction=0).mean(1),
            features=tokens.mean((1, 2)),
            moe=features.moe,
        )

    def target_of(self, target: Tensor, grid: Grid) -> Tensor:
        """What a teacher's map (B, H', W', C') is as a target: on a grid, whitened; fp32."""
        wanted = resized_map(target, grid)
        return whitened(wanted) if self.config.whiten else wanted


def build_distiller(
    model: ModelConfig,
    config: DistillConfig,
    width: int,
    grid: Grid,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    sharded: bool = False,
    exchange: ExchangeOptions | None = None,
) -> Distiller:
    """A student to train, with initial weights that depend on (model, seed) alone; see `build_model`."""

    def make(model: ModelConfig, placement: ExpertParallel | None) -> Distiller:
        return Distiller(model, config, width, grid, placement)

    return construct(
        make, model, seed=seed, mesh=mesh, sharded=sharded, exchange=exchange or ExchangeOptions()
    )


def soft_target_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The divergence of a student's classes from a teacher's, mean over the images: scalar, fp32.

    T^2 KL(softmax(teacher / T) || softmax(logits / T)), so that its gradient keeps its size whatever T
    (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Args:
        logits: (B, K) of the student.
        teacher: (B, K).
        temperature: T.
    """
    student = (logits.float() / temperature).log_softmax(1)
    wanted = (teacher.float() / temperature).log_softmax(1)
    divergence = F.kl_div(student, wanted, log_target=True, reduction="batchmean")
    return divergence * temperature**2
