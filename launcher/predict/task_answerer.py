"""The model of any task as an evaluation runs it, on images alone.

Legend: B images of a batch, C channels of the last map.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_shards.format.rng import DrawKey
from data_shards.stream.batch import Batch, BatchPlan, UnfinishedBatch
from data_shards.stream.collate import BufferPool
from data_shards.stream.transform import Example
from launcher.config.errors import ConfigError
from launcher.config.schema import RunConfig
from launcher.deploy.options import DeviceType
from launcher.deploy.source import check_device
from launcher.evaluation.context import load_task
from launcher.evaluation.modes import standard_modes
from launcher.evaluation.recorded import recorded_config
from launcher.predict.answerer import Answered, Asked, answer_options
from launcher.tasks.answers import AnswerOptions
from launcher.tasks.image_data import backbone_views, pooled_features
from launcher.tasks.registry import task_spec
from launcher.tasks.spec import Task
from launcher.validation.resume_policy import recorded_classes
from parallel.checkpoint.latest import IntactCheckpoint
from parallel.checkpoint.verify import read_verified
from parallel.experts.names import EMA, MASTER
from parallel.ranks.dims import ParallelDims
from parallel.ranks.host import send
from parallel.ranks.mesh import Mesh
from parallel.zero.options import Precision
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import sample_keys
from swin_moe.weights.native import checkpoint_in


def open_task(
    source: str | Path, *, ema: bool, precision: Precision, device: DeviceType, asked: Asked
) -> "TaskAnswerer":
    """A run or a checkpoint of a task whose spec has `predicting`.

    Raises:
        ConfigError: the configuration of the run cannot be used here.
        CheckpointError: it is damaged, or holds no moving average.
        ArtifactError: there is no such device.
    """
    config, place = recorded_config(source), check_device(device)
    config = replace(config, train=replace(config.train, precision=precision))
    _refuse_shared_routing(config)
    path = checkpoint_in(Path(source))
    assert path is not None
    checkpoint = IntactCheckpoint(path=path, manifest=read_verified(path), notices=[])
    mesh = Mesh(dims=ParallelDims(world_size=1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.distributed")  # says that this is one process
        config, task = load_task(config, checkpoint, mesh, place, EMA if ema else MASTER)
    options = answer_options(asked, config.model.num_classes, recorded_classes(checkpoint.manifest))
    return TaskAnswerer(config, task, options, asked)


class TaskAnswerer:
    """See `Answerer`.

    Args:
        config: of the run, in the precision that the model has.
        task: with its model.
        options: of the answers.
        asked: what else is said.
    """

    def __init__(self, config: RunConfig, task: Task, options: AnswerOptions, asked: Asked) -> None:
        spec = task_spec(config.task)
        assert spec.predicting is not None
        self.config, self.task, self.model = config, task, task.model.eval()
        self.options, self.asked, self.predicting = options, asked, spec.predicting
        self.backbone = spec.backbone(self.model)
        self.device = next(self.model.parameters()).device
        self.transform = self.predicting.data(config).transform
        self.member = self.predicting.member
        if self.transform.fields != (self.member,):
            raise ConfigError(
                f"task={config.task} cannot predict: `predicting.data` reads the members "
                f"{', '.join(self.transform.fields)}, and a prediction has the {self.member} alone"
            )
        moe = config.model.moe
        call = standard_modes(moe)[0].call if moe else RoutingOverrides()
        self.call = replace(call, by_image=True)

    @property
    def columns(self) -> Sequence[str]:
        """See `Answerer`."""
        return self.predicting.columns(self.options)

    def example(self, image: bytes, position: int) -> Example:
        """What the transform of the task makes of an image."""
        return self.transform({self.member: image}, DrawKey(0, position))

    def answer(self, examples: Sequence[Example], positions: Sequence[int]) -> list[Answered]:
        """See `Answerer`."""
        step = 1 if self.predicting.one_by_one or self.asked.pictures else len(examples)
        pieces = range(0, len(examples), step)
        return [
            one
            for first in pieces
            for one in self._answer(examples[first : first + step], positions[first : first + step])
        ]

    @torch.no_grad()
    def _answer(self, examples: Sequence[Example], positions: Sequence[int]) -> list[Answered]:
        batch = self._batch(examples, positions)
        inputs = self.task.eval_inputs(batch)
        keys = send(sample_keys(0, batch.positions), self.device)
        prediction = self.task.predict(self.model, inputs, keys, self.call)
        said = self.predicting.answers(prediction, batch, self.options)
        features = self._features(inputs, keys) if self.asked.features else repeat(None)
        pictures: Mapping[str, Tensor] = {}
        if self.asked.pictures and self.predicting.pictures is not None:
            pictures = self.predicting.pictures(self.task, self.model, inputs, prediction, self.options)
        maps: Iterable[Tensor | None] = repeat(None)
        if self.asked.class_map and self.predicting.class_maps is not None:
            maps = self.predicting.class_maps(prediction).cpu().unbind()
        return [
            Answered(one, row, pictures, found) for one, row, found in zip(said, features, maps, strict=False)
        ]

    def _batch(self, examples: Sequence[Example], positions: Sequence[int]) -> Batch:
        """The examples as a stream collates them."""
        numbers = np.array(positions, dtype=np.int64)
        plan = BatchPlan(positions=numbers, shards=np.zeros_like(numbers), rows=numbers)
        collators = self.transform.collators
        buffers = {name: BufferPool(1, pinned=self.device.type == "cuda") for name in collators}
        batch = UnfinishedBatch(plan, collators, buffers)
        for row, example in enumerate(examples):
            batch.put(row, example)
        return batch.finished()

    def _features(self, inputs: Any, keys: Tensor) -> list[Tensor]:
        """The mean of the last map of each image over its tokens, and over a video's views: (C,) fp32."""
        views = backbone_views(inputs)
        if views is None or isinstance(inputs, Tensor) and len(inputs) != len(keys):
            raise ConfigError(
                f"--features: the inputs of task={self.config.task} are not one image or video a sample, "
                "which the backbone takes; leave out --features"
            )
        return [row.clone() for row in pooled_features(self.backbone, views, keys, self.call).cpu()]


def _refuse_shared_routing(config: RunConfig) -> None:
    """Refuse experts that choose among the tokens of several images: an answer would depend on the others."""
    moe = config.model.moe
    if moe is not None and moe.router == "expert_choice" and moe.routing_group_images != 1:
        raise ConfigError(
            f"model.moe.routing_group_images ({moe.routing_group_images}) must be 1 for predictions with "
            "model.moe.router=expert_choice: otherwise the answer to an image depends on the others"
        )
