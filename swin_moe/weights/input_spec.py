"""What the user of trained weights must know of the images that they were trained on.

A checkpoint has it in the configuration and the class names of its run, a safetensors file in its metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from parallel.checkpoint.manifest import read_manifest
from parallel.checkpoint.scores import resolved
from swin_moe.weights.errors import WeightsError
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
        WeightsError: what it says of the images is.
    """
    path = resolved(Path(source))
    values: dict[str, Any] | str | None
    if path.is_dir():
        checkpoint = checkpoint_in(path)
        values = _recorded(read_manifest(checkpoint)) if checkpoint else None
    else:
        values = read_metadata(path).get(INPUTS)
    if values is None:
        return None
    try:
        return _input_spec(json.loads(values) if isinstance(values, str) else values)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise WeightsError(
            f"{source}: what it says of its images (mean, std, eval_crop, classes) is damaged: {reason}"
        ) from error


def _recorded(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the configuration of a run says, and the class names that it recorded."""
    run = parse_yaml(manifest.get("config", ""))
    data = run.get("data") if isinstance(run, dict) else None
    return {**data, "classes": manifest.get("classes")} if data else None


def _input_spec(values: Mapping[str, Any]) -> InputSpec:
    """KeyError, TypeError or ValueError unless the values are those of an InputSpec."""
    mean, std, crop = _three(values["mean"]), _three(values["std"]), float(values["eval_crop"])
    if min(std) <= 0 or not 0 < crop <= 1:
        raise ValueError(f"std {std} must be above 0, and eval_crop ({crop}) in 0 ... 1")
    classes = values["classes"]
    if classes is not None and not (isinstance(classes, list) and all(isinstance(c, str) for c in classes)):
        raise TypeError("the classes are no list of names")
    return InputSpec(mean=mean, std=std, eval_crop=crop, classes=tuple(classes) if classes else None)


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    if not all(map(isfinite, (red, green, blue))):
        raise ValueError(f"{values} are no finite numbers")
    return red, green, blue
