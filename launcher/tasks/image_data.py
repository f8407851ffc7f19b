"""The images of tasks whose model sees one picture a sample, of the size that the model is configured for.

Legend: B images of H x W pixels, or clips of D of them; C channels of the last map.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from data_shards.augment.normalize import Normalize
from data_shards.format.fields import IMAGE_AND_LABEL
from data_shards.image.geometry import EvalTransform, TrainTransform
from data_shards.stream.batch import Batch
from data_shards.stream.transform import Images, LabelledImages, PerhapsLabelled
from launcher.config.schema import DataConfig, RunConfig
from launcher.tasks.norm_task import NormTask
from launcher.tasks.spec import DataSpec, TaskContext
from swin_moe.backbone.backbone import Backbone
from swin_moe.moe.overrides import RoutingOverrides


class BackboneViews(Protocol):
    """The inputs of an evaluation that say which views of each sample stand for it before the backbone."""

    def backbone_views(self) -> Iterable[Tensor]:
        """What the backbone alone takes, one view of all samples at a time: (B, 3, H, W), clips have D."""


class ViewInputs(NamedTuple):
    """The inputs of an evaluation that looks at several views of each image."""

    views: tuple[Tensor, ...]  # of (B, 3, H, W) float32 each; the first has the centres without augmentation

    def backbone_views(self) -> Iterable[Tensor]:
        """The centres alone."""
        return self.views[:1]


def backbone_views(inputs: Any) -> Iterable[Tensor] | None:
    """What the backbone alone takes of the inputs of `Task.predict`, view after view.

    Args:
        inputs: images (B, 3, H, W), or `BackboneViews`.

    Returns:
        (B, 3, H, W) float32 each, of clips (B, 3, D, H, W); None if the inputs are something else.
    """
    if isinstance(inputs, Tensor):
        return (inputs,)
    return cast(BackboneViews, inputs).backbone_views() if hasattr(inputs, "backbone_views") else None


def pooled_features(
    backbone: Backbone, views: Iterable[Tensor], keys: Tensor, call: RoutingOverrides
) -> Tensor:
    """The mean of the last map over its tokens and over the views of each sample: (B, C) float32.

    Args:
        backbone: of the model.
        views: `backbone_views`.
        keys: (B,) of the samples.
        call: what the MoE layers do otherwise than configured.
    """
    pooled = [backbone.forward_pooled(view, keys, call)[0].float() for view in views]
    return pooled[0] if len(pooled) == 1 else torch.stack(pooled).mean(0)


class ImageTask(NormTask):
    """A task whose model is evaluated on images, normalized and nothing else.

    Args:
        config: of the run.
        context: of this rank.
    """

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        super().__init__(config, context.mesh)
        self.device = context.device

    def eval_inputs(self, batch: Batch) -> Tensor:
        """Images (B, 3, H, W) float32."""
        return normalize_images(batch["image"], self.config.data, self.device)

    def predict(self, model: nn.Module, inputs: Tensor, keys: Tensor, call: RoutingOverrides) -> Any:
        """The model's output."""
        return model(inputs, keys, call)


def train_images(config: RunConfig) -> DataSpec:
    """Random crops without labels."""
    return DataSpec(transform=Images(random_crop(config)), members=IMAGE_AND_LABEL[:1])


def eval_images(config: RunConfig) -> DataSpec:
    """The centres of images without labels."""
    return DataSpec(transform=Images(central_crop(config)))


def train_labelled_images(config: RunConfig) -> DataSpec:
    """Random crops with labels."""
    return DataSpec(transform=LabelledImages(random_crop(config)))


def eval_labelled_images(config: RunConfig) -> DataSpec:
    """The centres of images with labels."""
    return DataSpec(transform=LabelledImages(central_crop(config)))


def eval_perhaps_labelled_images(config: RunConfig) -> DataSpec:
    """The centres of images, with labels of the splits that have them."""
    return DataSpec(transform=PerhapsLabelled(Images(central_crop(config))))


def random_crop(config: RunConfig) -> TrainTransform:
    """A random resized crop, mirrored at random, of the size of the model."""
    data = config.data
    return TrainTransform(
        image_size=config.model.image_sides,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        flip_prob=data.flip_probability,
    )


def central_crop(config: RunConfig) -> EvalTransform:
    """The centre of the image, of the size of the model."""
    return EvalTransform(image_size=config.model.image_sides, crop_ratio=config.data.eval_crop)


def image_members(config: RunConfig, images: int) -> dict[str, Tensor]:
    """The images of a batch, without values: uint8."""
    model = config.model
    return {"image": torch.empty(images, model.in_chans, *model.image_sides, dtype=torch.uint8)}


def image_inputs(config: RunConfig, members: dict[str, Tensor]) -> Tensor:
    """What `normalize_images` makes of `image_members`."""
    mean = torch.empty(1, config.model.in_chans, 1, 1)
    return (members["image"].float() - mean) / mean


def normalize_images(images: Tensor, data: DataConfig, device: torch.device) -> Tensor:
    """Move uint8 images to the device and normalize them there: (B, 3, H, W) -> float32."""
    return _normalize(data.mean, data.std, device)(images)


_normalize = cache(Normalize)  # its tensors are sent to a device once, because sending them waits
