"""A classifier that also learns from images without labels, four beside each labelled one."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from data_shards.stream.transform import Images
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.classification import SPEC as CLASSIFICATION
from launcher.tasks.classification.task import ClassificationTask
from launcher.tasks.image_data import normalize_images, random_crop, train_labelled_images
from launcher.tasks.spec import DataPart, DataSpec, StepOutput, Task, TaskContext
from parallel.ranks.host import send
from swin_moe.heads.classification import classification_loss


@dataclass(frozen=True, kw_only=True)
class MixedOptions:
    """The section `mixed`."""

    unlabelled: str = ""  # a split with images


def train_data(config: RunConfig) -> DataSpec:
    """data.train, and four times as many images of another split."""
    split = options_of(config, MixedOptions).unlabelled
    unlabelled = DataPart(
        option="mixed.unlabelled", split=split, transform=Images(random_crop(config)), share=4
    )
    return replace(train_labelled_images(config), part="labelled", beside={"unlabelled": unlabelled})


class MixedTask(ClassificationTask):
    """Cross-entropy of the labelled images, and the entropy of what is predicted for the others."""

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images = torch.cat([batch["labelled.image"], batch["unlabelled.image"]])
        return normalize_images(images, self.config.data, self.device), send(
            batch["labelled.label"], self.device
        )

    def step(self, engine: Any, inputs: tuple[Tensor, Tensor], keys: Tensor) -> StepOutput:
        images, labels = inputs
        output = engine(images, keys)
        labelled = classification_loss(output.logits[: len(labels)], labels, 0.0)
        rest = output.logits[len(labels) :].float()
        entropy = -(rest.softmax(1) * rest.log_softmax(1)).sum(1).mean()
        return StepOutput(
            loss=labelled + entropy, terms={"labelled": labelled, "entropy": entropy}, moe=output.moe
        )


def _build(config: RunConfig, context: TaskContext) -> Task:
    return MixedTask(config, context)


SPEC = replace(
    CLASSIFICATION, name="mixed", options=MixedOptions, build=_build, train_data=train_data, planning=None
)
