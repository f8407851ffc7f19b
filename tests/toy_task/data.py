"""Views and points of the toy task, functions of the position of a sample alone.

Legend: B samples, N points of all samples together.
"""

import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.tasks.image_data import eval_labelled_images, train_labelled_images
from launcher.tasks.spec import DataSpec


def train_data(config: RunConfig) -> DataSpec:
    """Random crops."""
    return train_labelled_images(config)


def eval_data(config: RunConfig) -> DataSpec:
    """Central crops."""
    return eval_labelled_images(config)


def views_of(images: Tensor, batch: Batch) -> Tensor:
    """The images and their mirror images: (2, B, 3, H, W)."""
    return torch.stack([images, images.flip(-1)])


def points_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """One to four points of each sample (N, 2), and the sample of each (N,)."""
    sample = torch.arange(len(batch.positions)).repeat_interleave(1 + batch["label"] % 4)
    place = torch.arange(len(sample)) - torch.searchsorted(sample, sample)  # 0, 1, ... in each sample
    label = batch["label"][sample]
    return torch.stack([label / 10.0, (place + 1) / (label + 2.0)], dim=1).float(), sample
