"""A predictor as the server needs it.

Legend: B images of h x w pixels.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_shards.augment.normalize import Normalize
from launcher.deploy.artifact import Artifact
from launcher.deploy.golden import read_golden
from launcher.deploy.predictor import Predictor
from launcher.evaluation.loaded import model_pixels
from launcher.serve.protocol import ExpertMap
from swin_moe.config import ModelConfig
from swin_moe.frozen.model import FrozenOutput

EXAMPLES = 12  # of the page


class ServedModel:
    """See `Model` in protocol.py.

    Args:
        predictor: an artifact, or a model that was loaded.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.name = predictor, predictor.source
        self.classes, self.num_classes = predictor.classes, predictor.model.num_classes
        self.expert_maps = expert_maps(predictor.model)
        self._normalize = Normalize(predictor.inputs.mean, predictor.inputs.std, torch.device("cpu"))

    @property
    def examples(self) -> Sequence[np.ndarray]:
        """The golden images of an artifact: (3, h, w) uint8 each."""
        if not isinstance(self.predictor, Artifact):
            return ()
        return [image.numpy() for image in read_golden(Path(self.predictor.folder)).images[:EXAMPLES]]

    def pixels(self, image: bytes) -> np.ndarray:
        """What it sees of the file of an image: (3, h, w) uint8."""
        return model_pixels(image, self.predictor.image_shape[1:], self.predictor.inputs).numpy()

    def run(self, pixels: np.ndarray) -> FrozenOutput:
        """Its answer to images (B, 3, h, w) uint8."""
        return self.predictor.run(self._normalize(torch.from_numpy(pixels)))

    def describe(self) -> dict[str, Any]:
        """What is known of it."""
        channels, height, width = self.predictor.image_shape
        card = asdict(self.predictor.card) if isinstance(self.predictor, Artifact) else None
        experts = f", {len(self.expert_maps)} layers with experts" if self.expert_maps else ""
        return {
            "text": f"{self.name}: {self.num_classes} classes, images of {width} x {height} pixels{experts}",
            "source": self.name,
            "classes": list(self.classes) if self.classes else None,
            "image": {"channels": channels, "height": height, "width": width},
            "card": card,
        }


def expert_maps(model: ModelConfig) -> tuple[ExpertMap, ...]:
    """The MoE layers of a model in order."""
    if model.moe is None:
        return ()
    return tuple(
        ExpertMap(f"layers.{stage}.blocks.{block}", *model.stage_resolution(stage), model.moe.num_experts)
        for stage, blocks in enumerate(model.moe.blocks)
        for block in sorted(blocks)
    )
