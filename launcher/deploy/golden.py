"""Golden images: a few images with the logits of the model that an artifact was made of.

They travel with the artifact, so that whoever runs it can see that it still computes the same.
Legend: N images of h x w pixels, K classes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_shards.augment.normalize import Normalize
from launcher.deploy.card import ArtifactError
from launcher.deploy.options import TargetName
from launcher.deploy.predictor import Predictor
from parallel.zero.options import Precision

GOLDEN = "golden.safetensors"
IMAGES = 16
BOUNDS: dict[Precision, float] = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 5e-2}
INT8_BOUND = 0.25  # what a broken quantization exceeds; the accuracy on a split is the finer test


@dataclass(frozen=True)
class Golden:
    """Images as a crop leaves them, and what the model says of them in fp32."""

    images: Tensor  # (N, channels, h, w) uint8
    logits: Tensor  # (N, K) fp32

    def write(self, folder: Path) -> None:
        """Write golden.safetensors."""
        save_file({"images": self.images.contiguous(), "logits": self.logits.contiguous()}, folder / GOLDEN)


def read_golden(folder: Path) -> Golden:
    """The golden images of an artifact.

    Raises:
        ArtifactError: they are missing or damaged.
    """
    try:
        with safe_open(folder / GOLDEN, framework="pt") as file:
            return Golden(file.get_tensor("images"), file.get_tensor("logits"))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder / GOLDEN} cannot be read: {error}; copy the folder again") from error


def bound(golden: Golden, target: TargetName, precision: Precision) -> float:
    """The largest difference of a logit that passes.

    The bounds of floats are absolute for logits within -1 ... 1; they grow with the largest golden logit
    beyond that, as rounding does. The bound of int8 is a share of the largest golden logit, however small.
    """
    largest = golden.logits.abs().max().item()
    return INT8_BOUND * largest if target == "onnx-int8" else BOUNDS[precision] * max(1.0, largest)


def difference(predictor: Predictor, golden: Golden, batch: int) -> float:
    """The largest difference between a logit and its golden one, with so many images a call.

    NaN where a logit is none. The images are repeated where a batch is larger than they are.
    """
    normalize = Normalize(predictor.inputs.mean, predictor.inputs.std, torch.device("cpu"))
    rows = torch.arange(-(-max(batch, len(golden.images)) // batch) * batch) % len(golden.images)
    pieces = normalize(golden.images)[rows].split(batch)
    logits = torch.cat([predictor.run(piece).logits for piece in pieces])
    return (logits - golden.logits[rows]).abs().max().item()


def batches(batch: tuple[int, int]) -> tuple[int, ...]:
    """The sizes of batches that are tried: the fewest images, 8 and the most."""
    return tuple(sorted({batch[0], min(max(8, batch[0]), batch[1]), batch[1]}))
