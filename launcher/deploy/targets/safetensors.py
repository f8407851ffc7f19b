"""Weights and the recipe, run by this package: for machines that have it, and for comparison."""

from pathlib import Path
from typing import Any

import torch

from launcher.deploy.card import Card
from launcher.deploy.options import DeployOptions
from launcher.deploy.predictor import Program
from launcher.deploy.source import check_device, freeze
from launcher.deploy.targets.base import Subject
from parallel.zero.dtypes import DTYPES
from swin_moe.backbone.model import build_model
from swin_moe.config import ModelConfig
from swin_moe.frozen.products import ExpertProducts
from swin_moe.weights import trained
from swin_moe.weights.export import save_weights

FILE = "model.safetensors"


class SafetensorsTarget:
    """model.safetensors is what `swin-moe export` writes, in the precision of the artifact."""

    needs_calibration = False

    def refusal(self, options: DeployOptions, model: ModelConfig) -> str | None:
        """Nothing is refused."""
        return None

    def write(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """The weights of the model, rounded."""
        model, dtype = subject.loaded.model, DTYPES[subject.options.precision]
        if dtype != torch.float32:
            rounded = build_model(model.config).to(dtype)  # a deep copy would not know whose experts it has
            rounded.load_state_dict(model.state_dict())
            model = rounded
        save_weights(model, folder / FILE, "safetensors", subject.loaded.inputs)
        return {}

    def open(self, card: Card, folder: Path) -> Program:
        """The model, frozen as `FrozenClassifier` does."""
        products: ExpertProducts = card.experts.products if card.experts else "gathered"
        return freeze(trained.load(folder / FILE), card.precision, check_device(card.device), products)
