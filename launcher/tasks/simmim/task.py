"""SimMIM: the pixels of masked patches, with masks drawn by the position of an image in the stream.

Legend: B images of H x W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.metrics.joined import JoinedMetric
from launcher.metrics.metric import Metric
from launcher.metrics.neighbours import NeighbourMetric
from launcher.tasks.encoder import encoder_of
from launcher.tasks.image_data import ImageTask
from launcher.tasks.simmim.metric import ReconstructionMetric
from launcher.tasks.spec import StepOutput, TaskContext
from swin_moe.heads.simmim import SimMIM, SimMIMOutput, build_simmim
from swin_moe.heads.simmim_config import SimMIMConfig
from swin_moe.moe.overrides import RoutingOverrides

SHOWN_IMAGES = 8  # in TensorBoard


def step(engine: Any, inputs: Tensor, keys: Tensor) -> StepOutput:
    """Mean absolute error of the masked pixels of images (B, 3, H, W)."""
    output = engine(inputs, keys)
    return StepOutput(loss=output.loss, terms={}, moe=output.moe)


class SimMIMTask(ImageTask):
    """Training of an encoder by masked image modeling: its predictions are the masked pixels."""

    def __init__(self, config: RunConfig, context: TaskContext) -> None:
        super().__init__(config, context)
        self.options = options_of(config, SimMIMConfig)
        self.model: nn.Module = build_simmim(
            config.model,
            self.options,
            seed=config.seed,
            mesh=context.mesh,
            sharded=context.sharded,
            exchange=context.exchange,
        ).to(context.device)

    def inputs(self, batch: Batch) -> Tensor:
        """Images (B, 3, H, W) float32."""
        return self.eval_inputs(batch)

    def step(self, engine: Any, inputs: Tensor, keys: Tensor) -> StepOutput:
        """Mean absolute error of the masked pixels."""
        return step(engine, inputs, keys)

    def predict(self, model: nn.Module, inputs: Tensor, keys: Tensor, call: RoutingOverrides) -> SimMIMOutput:
        """The masked pixels; with simmim.eval_neighbours the features of the images without a mask, too."""
        output: SimMIMOutput = model(inputs, keys, call)
        if not self.options.eval_neighbours:
            return output
        features, _ = encoder_of(model).forward_pooled(inputs, keys, call)
        return output._replace(features=features)

    def metric(self) -> Metric:
        """The reconstruction error, and the k nearest neighbours if they are asked for."""
        error, neighbours = ReconstructionMetric(self.device), self.options.eval_neighbours
        if not neighbours:
            return error
        return JoinedMetric(error, NeighbourMetric(self.device, neighbours=neighbours))

    def visualize(self, model: nn.Module, inputs: Tensor, prediction: SimMIMOutput) -> Tensor:
        """One column an image: the image, its visible patches, the image with masked pixels filled in."""
        assert isinstance(model, SimMIM)
        visible = inputs.masked_fill(prediction.mask[:, None], 0.0)  # masked pixels have the mean colour
        rows = [inputs, visible, model.fill_in(prediction, inputs)]
        data = self.config.data
        mean, std = (torch.tensor(v, device=inputs.device).view(3, 1, 1) for v in (data.mean, data.std))
        shown = [(torch.cat([*row[:SHOWN_IMAGES]], dim=2) * std + mean).clamp(0, 1) for row in rows]
        return torch.cat(shown, dim=1)
