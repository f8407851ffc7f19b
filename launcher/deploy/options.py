"""What `swin-moe deploy` is asked for; no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parallel.zero.options import Precision
from swin_moe.frozen.products import ExpertProducts

TargetName = Literal["pt2", "onnx", "onnx-int8", "safetensors"]
DeviceType = Literal["cpu", "cuda"]
KEEP_FLOAT = ("merging", "fc2")  # layers that onnx-int8 may leave in fp32
BATCH = (1, 32)  # the fewest and the most images of a call of a program


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """How a model becomes an artifact.

    `products` None takes `default_products`. `calibration_images` and `keep_float` are of onnx-int8.
    `verify_images` None judges the whole validation split.
    """

    target: TargetName
    out: Path
    batch: tuple[int, int] = BATCH
    precision: Precision = "fp32"
    device: DeviceType = "cpu"
    products: ExpertProducts | None = None
    calibration_images: int = 128
    keep_float: tuple[str, ...] = ()
    seed: int = 0  # of the draws of golden and calibration images
    verify_images: int | None = None
