"""What a detector learns from, and what it gives.

Legend: B images of a micro-batch, G objects of the image with most, N run lengths of all masks, D places for
detections of an image, M boxes of an image.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Targets(NamedTuple):
    """The objects of a micro-batch, those of an image in its first places.

    Boxes are x1 y1 x2 y2 in pixels of the padded canvas.

    A mask is the image without padding read row by row, as the lengths of its runs of zeros and of ones in
    turn, zeros first. The runs of object g of image b are `mask_runs[mask_offsets[b, g] :
    mask_offsets[b, g + 1]]`.
    """

    boxes: Tensor  # (B, G, 4) fp32; zeros for padding
    labels: Tensor  # (B, G) int64; -1 for padding
    mask_runs: Tensor  # (N,) int32
    mask_offsets: Tensor  # (B, G + 1) int64

    @property
    def valid(self) -> Tensor:
        """Which places hold an object: (B, G) bool."""
        return self.labels >= 0


class Detections(NamedTuple):
    """What a detector finds: a fixed number of places for each image, the best detection first."""

    boxes: Tensor  # (B, D, 4) fp32, in pixels of the original image
    scores: Tensor  # (B, D) fp32, descending; 0 for places without a detection
    labels: Tensor  # (B, D) int64; -1 for places without a detection
    masks: Tensor | None  # (B, D, 28, 28) fp32: probabilities of the detected class
    finite: Tensor  # (B,) bool: whether all that was computed is; if not, detections may be missing


def take_objects(values: Tensor, numbers: Tensor) -> Tensor:
    """What boxes get from the objects that they are to find; zeros for boxes without an object.

    Args:
        values: (B, G, ...) of the objects; G may be 0.
        numbers: (B, M) int64 of `assign`: below 0 for boxes without an object.

    Returns:
        (B, M, ...).
    """
    nothing = values.new_zeros((len(values), 1, *values.shape[2:]))
    values = torch.cat([nothing, values], dim=1)
    index = numbers.clamp_min(-1) + 1
    return values[torch.arange(len(values), device=values.device)[:, None], index]
