"""SimMIM: the pixels of masked patches, with masks drawn by the position of an image in the stream.

Legend: B images of H x W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from data_shards.stream.batch import Batch
from launcher.config.schema import RunConfig
from launcher.tasks.base import Metric, normalize_images
from launcher.tasks.simmim.metric import ReconstructionMetric
from parallel.experts.exchange import ExchangeOptions
from parallel.ranks.mesh import Mesh
from swin_moe.backbone.flops import construct_on_meta
from swin_moe.backbone.model import SwinTransformer
from swin_moe.heads.simmim import SimMIM, SimMIMOutput, build_simmim

SHOWN_IMAGES = 8  # in TensorBoard


class SimMIMTask:
    """Training of an encoder by masked image modeling.

    Args:
        config: of the run.
        device: of the model.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.metric: Metric = ReconstructionMetric(device)

    def build(self, mesh: Mesh, *, sharded: bool, exchange: ExchangeOptions) -> SimMIM:
        """Build encoder and decoder with their initial weights."""
        config = self.config
        return build_simmim(
            config.model, config.simmim, seed=config.seed, mesh=mesh, sharded=sharded, exchange=exchange
        )

    @staticmethod
    def on_meta(config: RunConfig) -> nn.Module:
        """Build encoder and decoder on the meta device."""
        return construct_on_meta(
            lambda model, placement: SimMIM(model, config.simmim, placement), config.model
        )

    @staticmethod
    def backbone(model: nn.Module) -> SwinTransformer:
        """The encoder."""
        assert isinstance(model, SimMIM)
        return model.encoder

    def inputs(self, batch: Batch) -> Tensor:
        """Images (B, 3, H, W) float32."""
        return normalize_images(batch["image"], self.config.data, self.device)

    def loss(self, engine: Any, inputs: Any, keys: Tensor) -> tuple[Tensor, SimMIMOutput]:
        """Mean absolute error of the masked pixels, and the model's output."""
        output = engine(inputs, keys)
        return output.loss, output

    def visualize(self, model: nn.Module, images: Tensor, output: SimMIMOutput) -> Tensor:
        """One column an image: the image, its visible patches, the image with masked pixels filled in."""
        assert isinstance(model, SimMIM)
        visible = images.masked_fill(output.mask[:, None], 0.0)  # masked pixels have the mean colour
        rows = [images, visible, model.fill_in(output, images)]
        data = self.config.data
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (data.mean, data.std))
        shown = [(torch.cat([*row[:SHOWN_IMAGES]], dim=2) * std + mean).clamp(0, 1) for row in rows]
        return torch.cat(shown, dim=1)
