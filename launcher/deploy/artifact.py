"""Artifacts that exist: a folder with a program, card.json and golden images.

artifact = load_artifact("runs/a/artifacts/pt2")
output = artifact.run(torch.stack([artifact.transform(path) for path in paths]))
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from launcher.deploy.card import CARD, ArtifactError, Card, check_files, read_card
from launcher.deploy.options import DeviceType
from launcher.deploy.predictor import Predictor
from launcher.deploy.source import open_source
from launcher.deploy.targets.registry import TARGETS
from parallel.zero.options import Precision


@dataclass(frozen=True, kw_only=True)
class Artifact(Predictor):
    """An artifact that is ready to run."""

    card: Card
    folder: Path


def load_artifact(folder: str | Path) -> Artifact:
    """Open an artifact.

    Raises:
        ArtifactError: it is none, is damaged, or does not run here; the message says why.
    """
    folder = Path(folder)
    card = read_card(folder)
    check_files(card, folder)
    return Artifact(
        source=str(folder),
        model=card.model_config(),
        inputs=card.inputs,
        program=TARGETS[card.target].open(card, folder),
        device=torch.device(card.device),
        batch=card.batch,
        card=card,
        folder=folder,
    )


def is_artifact(source: str | Path) -> bool:
    """Whether a path is meant as an artifact."""
    return (Path(source) / CARD).is_file()


def open_predictor(
    source: str | Path,
    config: str | Path | None = None,
    *,
    ema: bool = False,
    precision: Precision | None = None,
    device: DeviceType | None = None,
) -> Predictor:
    """An artifact, or a model as it is.

    Args:
        source: an artifact, a run, a checkpoint, or weights of any format.
        config: the recipe (its name or a YAML file) of weights that do not know their model.
        ema: take the moving average of the weights.
        precision: to compute in; None is fp32, or what the artifact has.
        device: to compute on; None is the CPU, or what the artifact has.

    Raises:
        ArtifactError: the artifact is damaged or does not run here; an option that it fixes differs; or the
            model has no classifier.
        ModelError: a router that has no answer for an image alone.
        WeightsError, ConfigError: as `launcher.load`.
    """
    if not is_artifact(source):
        return open_source(source, config, ema=ema, precision=precision or "fp32", device=device or "cpu")
    artifact = load_artifact(source)
    fixed = {"precision": (precision, artifact.card.precision), "device": (device, artifact.card.device)}
    for name, (wanted, found) in fixed.items():
        if wanted not in (None, found):
            raise ArtifactError(f"{name} ({wanted}): the artifact {source} is {found}; deploy another")
    if ema or config is not None:
        raise ArtifactError(
            f"{source} is an artifact, which has its weights and recipe: leave out ema and config"
        )
    return artifact
