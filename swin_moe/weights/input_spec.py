"""What the user of trained weights must know of the images that they were trained on.

A checkpoint has it in the configuration and the class names of its run, a safetensors file in its metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parallel.checkpoint.manifest import read_manifest
from swin_moe.weights.files import read_metadata
from swin_moe.weights.native import checkpoint_in
from swin_moe.yaml_files import parse_yaml

INPUTS = "inputs"  # the entry in the metadata of a safetensors file


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The images that a model takes, beside their size, and what its outputs stand for.

    `mean` and `std` are of values in 0 ... 1. `eval_crop` is the fraction of the resized image that an
    evaluation keeps (data.eval_crop). `classes` names the outputs in their order; None where nobody knows.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    eval_crop: float
    classes: tuple[str, ...] | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file that holds it."""
        return {INPUTS: json.dumps(asdict(self))}


def input_spec_of(source: str | Path) -> InputSpec | None:
    """What a run, a checkpoint or a safetensors file of ours says of the images; None for others.

    Raises:
        CheckpointError: the manifest of the checkpoint is damaged.
    """
    path = Path(source)
    if path.is_dir():
        checkpoint = checkpoint_in(path)
        return _of_manifest(read_manifest(checkpoint)) if checkpoint else None
    text = read_metadata(path).get(INPUTS)
    return _input_spec(json.loads(text)) if text else None


def _of_manifest(manifest: Mapping[str, Any]) -> InputSpec | None:
    """From the configuration of the run, and the class names that it recorded."""
    run = parse_yaml(manifest.get("config", ""))
    data = run.get("data") if isinstance(run, dict) else None
    return _input_spec({**data, "classes": manifest.get("classes")}) if data else None


def _input_spec(values: Mapping[str, Any]) -> InputSpec:
    return InputSpec(
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        eval_crop=values["eval_crop"],
        classes=tuple(values["classes"]) if values["classes"] else None,
    )
