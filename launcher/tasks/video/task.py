"""Action recognition: a class for each video, from clips of it.

Legend: B videos, V views of each, D frames of h x w pixels, K classes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from data_shards.augment.clips import ClipAugment, normalize_clips
from data_shards.augment.normalize import Normalize
from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.metrics.metric import Metric
from launcher.tasks.class_loss import class_loss
from launcher.tasks.spec import StepOutput, TaskBase, TaskContext
from launcher.tasks.video.metric import VideoMetric
from launcher.tasks.video.options import VideoOptions
from launcher.tasks.video.prediction import VideoPrediction, predict_views
from swin_moe.backbone.model import ModelOutput, build_model
from swin_moe.moe.overrides import RoutingOverrides


class ClipViews(NamedTuple):
    """All views of some videos, as they were decoded: they become floats one pass at a time."""

    clips: Tensor  # (B, V, D, 3, h, w) uint8
    normalize: Normalize  # of the run, on the device of the clips

    def backbone_views(self) -> Iterator[Tensor]:
        """Each view of all videos: (B, 3, D, h, w) float32."""
        for view in self.clips.unbind(1):
            yield normalize_clips(view, self.normalize)


def step(config: RunConfig, engine: Any, inputs: tuple[Tensor, Tensor], keys: Tensor) -> StepOutput:
    """The loss of clips (B, 3, D, h, w) with labels (B,) or probabilities (B, K), with label smoothing."""
    clips, targets = inputs
    output = engine(clips, keys)
    return StepOutput(loss=class_loss(config.optim, output.logits, targets), terms={}, moe=output.moe)


class VideoTask(TaskBase):
    """Training of a classifier of clips; its predictions are of videos.

    Args:
        config: of the run.
        context: of this rank.
    """

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        self.config, self.device, data = config, context.device, config.data
        self.options = options_of(config, VideoOptions)
        self.model: nn.Module = build_model(
            config.model,
            seed=config.seed,
            mesh=context.mesh,
            sharded=context.sharded,
            exchange=context.exchange,
        ).to(self.device)
        self.augment = ClipAugment(
            data.augment, seed=config.seed, mean=data.mean, std=data.std, device=self.device
        )
        self.normalize = Normalize(data.mean, data.std, self.device)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Clips (B, 3, D, h, w) float32, and labels (B,) or, of mixed clips, probabilities (B, K)."""
        clips, targets = self.augment(batch["clip"], batch["label"], batch.positions)
        mixes = self.config.data.augment is not None and self.config.data.augment.mixes
        return clips, targets.soft(self.config.model.num_classes) if mixes else targets.labels

    def step(self, engine: Any, inputs: tuple[Tensor, Tensor], keys: Tensor) -> StepOutput:
        """The loss of a micro-batch."""
        return step(self.config, engine, inputs, keys)

    def eval_inputs(self, batch: Batch) -> ClipViews:
        """All views of each video."""
        return ClipViews(batch["clip"].to(self.device, non_blocking=True), self.normalize)

    def predict(
        self, model: nn.Module, inputs: ClipViews, keys: Tensor, call: RoutingOverrides
    ) -> VideoPrediction:
        """The class of each video, from all of its views."""

        def run(clips: Tensor, keys: Tensor) -> ModelOutput:
            output: ModelOutput = model(normalize_clips(clips, inputs.normalize), keys, call)
            return output

        return predict_views(run, inputs.clips, keys, self.options.view_batch)

    def metric(self) -> Metric:
        """Accuracy of videos and of views."""
        options = self.options
        return VideoMetric(self.device, self.config.model.num_classes, options.clips, options.crops)
