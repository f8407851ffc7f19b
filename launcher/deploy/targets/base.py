"""What a target gets and gives.

Legend: N images of h x w pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from launcher.deploy.card import Card
from launcher.deploy.options import DeployOptions
from launcher.deploy.predictor import Program
from launcher.evaluation.loaded import LoadedModel
from swin_moe.config import ModelConfig
from swin_moe.frozen.model import FrozenClassifier


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that becomes an artifact."""

    loaded: LoadedModel  # fp32, on the CPU
    frozen: FrozenClassifier  # in the precision and on the device of the artifact
    options: DeployOptions
    calibration: Tensor | None = None  # (N, channels, h, w) uint8, for targets that need it

    @property
    def device(self) -> torch.device:
        """Where the program is made and runs."""
        return next(self.frozen.parameters()).device


class Target(Protocol):
    """A kind of program."""

    needs_calibration: bool

    def refusal(self, options: DeployOptions, model: ModelConfig) -> str | None:
        """Why the options cannot be had, in one line, or None; before any work."""

    def write(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """Write model.* into a folder; what the card says of how it was made."""

    def open(self, card: Card, folder: Path) -> Program:
        """The program of an artifact, ready to run.

        Raises:
            ArtifactError: it does not run here.
        """


def output_names(number: int) -> list[str]:
    """The names of the tensors of a `FrozenOutput`, in order."""
    return ["logits", "features", *(f"experts_{layer}" for layer in range(number - 2))]
