"""From the uint8 crops of `PixelLabelCrops` to float32 inputs, on the model's device.

    augment = PixelAugment(PhotometricDistortion(), seed=seed, mean=mean, std=std, device=device)
    images = augment(batch["image"], batch["size"], batch.positions)

Legend: B images of H x W pixels.
"""

import torch
from torch import Tensor

from data_shards.augment.normalize import Normalize
from data_shards.augment.photometric import PhotometricDistortion, distort
from parallel.ranks.host import send


class PixelAugment:
    """Distorts the colours of batches on `device`, normalizes them, and makes their padding 0.

    A sample's draws are keyed by the seed and its position, so that a call may be repeated, split and
    reordered. `mean` and `std` normalize values in 0 ... 1. Without `photometric` no colour changes.
    """

    def __init__(
        self,
        photometric: PhotometricDistortion | None,
        *,
        seed: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device | str = "cpu",
    ) -> None:
        self.photometric, self.seed, self.device = photometric, seed, torch.device(device)
        self.normalize = Normalize(mean, std, self.device)

    def __call__(self, images: Tensor, sizes: Tensor, positions: Tensor) -> Tensor:
        """Images (B, 3, H, W) uint8 -> (B, 3, H, W) float32 on the device.

        `sizes` (B, 2) are the valid height and width of each image, `positions` (B,) int64 its position in
        the stream, both on the host, where the stream has put them. The arguments are left as they are.
        """
        if positions.device.type != "cpu" or sizes.device.type != "cpu":
            raise ValueError("positions and sizes must be on the CPU, as the stream gives them")
        images = images.to(self.device, non_blocking=True, copy=True)
        if self.photometric is not None:
            distort(images, self.photometric.draw(self.seed, positions))
        return clear_padding(self.normalize(images), sizes)


def clear_padding(images: Tensor, sizes: Tensor) -> Tensor:
    """Make images (B, 3, H, W) float32 0 in place, beyond their valid height and width, `sizes` (B, 2)."""
    sides = torch.tensor(images.shape[-2:])
    if not bool((sizes < sides).any()):  # on the host, so that most batches of full crops cost nothing
        return images
    height, width = send(sizes, images.device)[:, :, None].unbind(1)  # (B, 1) each
    rows = torch.arange(images.shape[-2], device=images.device) >= height
    columns = torch.arange(images.shape[-1], device=images.device) >= width
    return images.masked_fill_((rows[:, :, None] | columns[:, None, :])[:, None], 0.0)
