"""What a run learns: the classes of its images (classification), or their hidden pixels (SimMIM).

Legend: B images of H x W pixels.
"""

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data_shards.augment.pipeline import Augment
from data_shards.stream.workers import Batch
from launcher.config.schema import DataConfig, RunConfig
from parallel.experts.exchange import ExchangeOptions
from parallel.ranks.host import send
from parallel.ranks.mesh import Mesh
from swin_moe.backbone.flops import build_on_meta, construct_on_meta
from swin_moe.backbone.model import ModelOutput, SwinTransformer, build_model
from swin_moe.heads.simmim import SimMIM, SimMIMOutput, build_simmim
from swin_moe.moe.losses import classification_loss, evaluation_sums

Colour = tuple[float, float, float]
PICTURES = 8  # images of a picture for TensorBoard


class Task(Protocol):
    """One kind of training; what it does not decide is in session.py and evaluate.py."""

    def build(self, mesh: Mesh, *, sharded: bool, exchange: ExchangeOptions) -> nn.Module:
        """The model with its initial weights."""

    def backbone(self, model: nn.Module) -> SwinTransformer:
        """The part of the model that pretrained weights are for."""

    def inputs(self, batch: Batch) -> Any:
        """What `loss` takes of a micro-batch, on the device; a function of its samples alone."""

    def loss(self, engine: Any, inputs: Any, keys: Tensor) -> tuple[Tensor, Any]:
        """The mean loss of a micro-batch without the experts' balance losses, and the model's output."""

    def sums(self, output: Any, batch: Batch) -> Tensor:
        """What evaluation adds up over batches and ranks: (n,) fp64."""

    def figures(self, sums: list[float]) -> dict[str, Any]:
        """The result of an evaluation, `loss` and `images` among it."""

    def line(self, figures: dict[str, Any]) -> str:
        """The result for a person."""

    def picture(self, model: nn.Module, images: Tensor, output: Any) -> Tensor | None:
        """A picture of what the model does to normalised images: (3, height, width) in 0 to 1, if any."""


class Classification:
    """The class of each image, or of two mixed ones their shares."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        data = config.data
        self.augment = None
        if data.augment is not None:
            self.augment = Augment(
                data.augment, seed=config.seed, mean=data.mean, std=data.std, device=device
            )

    def build(self, mesh: Mesh, *, sharded: bool, exchange: ExchangeOptions) -> SwinTransformer:
        """The classifier."""
        config = self.config
        return build_model(config.model, seed=config.seed, mesh=mesh, sharded=sharded, exchange=exchange)

    def backbone(self, model: nn.Module) -> SwinTransformer:
        """All of it."""
        assert isinstance(model, SwinTransformer)
        return model

    def loss(self, engine: Any, inputs: Any, keys: Tensor) -> tuple[Tensor, ModelOutput]:
        """Cross-entropy, smoothed or of mixed labels."""
        images, targets = inputs
        output = engine(images, keys)
        return classification_loss(output.logits, targets, self.config.optim.label_smoothing), output

    def sums(self, output: ModelOutput, batch: Batch) -> Tensor:
        """(4,): weighted cross-entropy, hits among the first and the first five, images."""
        labels, weights = send(batch.labels, self.device), send(batch.weights, self.device)
        return evaluation_sums(self.scores(output), labels, weights)

    def scores(self, output: ModelOutput) -> Tensor:
        """What an image is judged by: (B, classes) logits."""
        return output.logits

    def figures(self, sums: list[float]) -> dict[str, Any]:
        """top1, top5 (shares of 1), loss (cross-entropy without smoothing), images."""
        loss, hits, hits5, images = sums
        return {
            "top1": hits / images,
            "top5": hits5 / images,
            "loss": loss / images,
            "images": int(images),
        }

    def line(self, figures: dict[str, Any]) -> str:
        """Top-1, top-5 and loss."""
        hits = f"top-1 {figures['top1']:.2%}, top-5 {figures['top5']:.2%}"
        return f"{hits}, loss {figures['loss']:.4f} on {figures['images']} images"

    def picture(self, model: nn.Module, images: Tensor, output: Any) -> None:
        """There is none."""

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) float32, and labels (B,) or, of mixed images, probabilities (B, classes)."""
        if self.augment is None:
            return normalised(batch.images, self.config.data, self.device), send(batch.labels, self.device)
        images, targets = self.augment(batch.images, batch.labels, batch.positions)
        return images, targets.soft(self.config.model.num_classes)


class Reconstruction:
    """SimMIM: the hidden pixels of each image, its mask drawn by its position in the stream."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device

    def build(self, mesh: Mesh, *, sharded: bool, exchange: ExchangeOptions) -> SimMIM:
        """Encoder and decoder."""
        config = self.config
        return build_simmim(
            config.model, config.simmim, seed=config.seed, mesh=mesh, sharded=sharded, exchange=exchange
        )

    def backbone(self, model: nn.Module) -> SwinTransformer:
        """The encoder."""
        assert isinstance(model, SimMIM)
        return model.encoder

    def inputs(self, batch: Batch) -> Tensor:
        """Images (B, 3, H, W) float32."""
        return normalised(batch.images, self.config.data, self.device)

    def loss(self, engine: Any, inputs: Any, keys: Tensor) -> tuple[Tensor, SimMIMOutput]:
        """Mean absolute error of the hidden pixels."""
        output = engine(inputs, keys)
        return output.loss, output

    def sums(self, output: SimMIMOutput, batch: Batch) -> Tensor:
        """(3,): absolute errors of hidden pixels, hidden pixels, images."""
        weights = send(batch.weights, self.device).double()
        hidden = output.mask.sum((1, 2))
        return torch.stack([output.error * weights, hidden * weights, weights]).double().sum(1)

    def figures(self, sums: list[float]) -> dict[str, Any]:
        """loss (mean absolute error of hidden pixels, under the same masks in every evaluation), images."""
        error, hidden, images = sums
        return {"loss": error / hidden, "images": int(images)}

    def line(self, figures: dict[str, Any]) -> str:
        """The reconstruction loss."""
        return f"reconstruction loss {figures['loss']:.4f} on {figures['images']} images"

    def picture(self, model: nn.Module, images: Tensor, output: SimMIMOutput) -> Tensor:
        """A column an image: the image, what the model sees, and what it makes of the hidden pixels."""
        assert isinstance(model, SimMIM)
        seen = images.masked_fill(output.mask[:, None], 0.0)  # the mean colour
        rows = [images, seen, model.fill_in(output, images)]
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in self._colours())
        shown = [(torch.cat([*row[:PICTURES]], dim=2) * std + mean).clamp(0, 1) for row in rows]
        return torch.cat(shown, dim=1)

    def _colours(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.config.data.mean, self.config.data.std


TASKS: dict[str, type[Classification] | type[Reconstruction]] = {
    "classification": Classification,
    "simmim": Reconstruction,
}


def task_of(config: RunConfig, device: torch.device) -> Task:
    """What the run of a configuration learns."""
    return TASKS[config.task](config, device)


def on_meta(config: RunConfig) -> nn.Module:
    """The model of a run in shapes alone, all experts on one rank."""
    if config.task == "simmim":
        return construct_on_meta(
            lambda model, placement: SimMIM(model, config.simmim, placement), config.model
        )
    return build_on_meta(config.model)


def backbone_on_meta(config: RunConfig) -> SwinTransformer:
    """The part of `on_meta` that pretrained weights are for."""
    model = on_meta(config)
    backbone = model.encoder if isinstance(model, SimMIM) else model
    assert isinstance(backbone, SwinTransformer)
    return backbone


def normalised(images: Tensor, data: DataConfig, device: torch.device) -> Tensor:
    """Move uint8 images to the device and normalise them there: (B, 3, H, W) -> float32."""
    mean, std = _colours(data.mean, data.std, device)
    return (images.to(device, non_blocking=True).float() - mean) / std


@cache
def _colours(mean: Colour, std: Colour, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation in 0 to 255 on the device, (1, 3, 1, 1) each: sent once, as a send waits."""
    first, second = (torch.tensor(values, device=device).view(1, 3, 1, 1) * 255.0 for values in (mean, std))
    return first, second
