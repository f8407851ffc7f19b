"""From uint8 clips to the float32 inputs of a video model, on its device: all frames of a clip alike.

    augment = ClipAugment(config, seed=seed, mean=mean, std=std, device=device)
    clips, targets = augment(batch["clip"], batch["label"], batch.positions)

The draws are those of an image at the position of the clip. So a clip whose frames are equal becomes that
image in every frame, but for the noise of random erasing, which is another one in each frame.

Legend: B clips of D frames of H x W pixels.
"""

import torch
from torch import Tensor

from data_shards.augment.mixup import Targets
from data_shards.augment.normalize import Normalize
from data_shards.augment.options import NOTHING, AugmentConfig
from data_shards.augment.pipeline import Augment


class ClipAugment:
    """Augments batches of clips on `device`. It has no state, so that calls may be repeated and split.

    Each operation of RandAugment or color jitter is the same in all frames of a clip, with the same argument;
    what it derives from the pixels, such as the range that a contrast stretches, is of each frame, as in
    mmaction2. The rectangles of random erasing and cutmix, and the weight of mixup, are those of a clip.

    `mean` and `std` normalize values in 0 ... 1. Without a `config` nothing else is done.
    """

    def __init__(
        self,
        config: AugmentConfig | None,
        *,
        seed: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device | str = "cpu",
    ) -> None:
        self._images = Augment(config or NOTHING, seed=seed, mean=mean, std=std, device=device)

    def __call__(self, clips: Tensor, labels: Tensor, positions: Tensor) -> tuple[Tensor, Targets]:
        """Clips (B, D, 3, H, W) uint8 -> (B, 3, D, H, W) float32, contiguous, and targets.

        `clips` and `labels` (B,) may be on the host or on the device, `positions` (B,) int64 must be on the
        host, where the stream has put them. The arguments are left as they are. DataError when a clip's
        partner in mixup is missing.
        """
        if positions.device.type != "cpu":
            raise ValueError(f"positions are on {positions.device}; pass them on the CPU, as the stream does")
        count, frames = clips.shape[:2]
        images = clips.to(self._images.device, non_blocking=True, copy=True).flatten(0, 1)
        self._images.operate(images, positions.repeat_interleave(frames))
        inputs = normalize_clips(images.unflatten(0, (count, frames)), self._images.normalize)
        self._images.erase(inputs.flatten(1, 2), positions)  # in place: the noise of a frame is its own
        return self._images.mix(inputs, labels, positions)


def normalize_clips(clips: Tensor, normalize: Normalize) -> Tensor:
    """Clips (B, D, 3, H, W) uint8 -> (B, 3, D, H, W) float32, contiguous, on the device of `normalize`."""
    images = normalize(clips.flatten(0, 1)).unflatten(0, tuple(clips.shape[:2]))
    return images.transpose(1, 2).contiguous()
