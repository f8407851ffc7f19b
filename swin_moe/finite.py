"""Which images have an answer: those for which a model computes finite numbers."""

import torch
from torch import Tensor


def finite_images(*computed: Tensor) -> Tensor:
    """Whether all values of each image are finite, of tensors (B, ...): (B,) bool."""
    return torch.stack([x.isfinite().flatten(1).all(1) for x in computed]).all(0)
