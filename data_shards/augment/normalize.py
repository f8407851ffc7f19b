"""Normalization of uint8 images on the device."""

import torch
from torch import Tensor


class Normalize:
    """(images - mean) / std, with `mean` and `std` given for values in 0 ... 1.

    The two tensors are sent to the device once, because a send waits for the device. They are in 0 ... 255,
    (1, 3, 1, 1) float32.
    """

    def __init__(
        self,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device,
    ) -> None:
        self.device = device
        self.mean, self.std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) * 255.0 for values in (mean, std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Move images (B, 3, H, W) uint8 to the device and normalize them there: float32."""
        return images.to(self.device, non_blocking=True).float().sub_(self.mean).div_(self.std)
