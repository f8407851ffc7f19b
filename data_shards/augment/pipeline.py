"""From the stream's uint8 batches to the float32 inputs of the model, on the model's device.

    augment = Augment(AugmentConfig(), seed=config.seed, mean=mean, std=std, device=device)
    images, targets = augment(batch["image"], batch["label"], batch.positions)   # float32 on the device
    loss = cross_entropy(logits, targets.soft(num_classes), label_smoothing=0.1)

The order is the reference's: RandAugment or color jitter on uint8, normalize, random erasing, mixup or
cutmix. The operations of a sample are drawn from (seed, position) on the host, where the positions are. So
the host knows which samples an operation touches, and never waits for the device.

Legend: B samples of H x W pixels.
"""

import torch
from torch import Tensor

from data_shards.augment.erasing import draw_rectangles, erase, noise_table
from data_shards.augment.mixup import Mix, Mixer, Targets, partners, weights
from data_shards.augment.normalize import Normalize
from data_shards.augment.operations import operate
from data_shards.augment.options import AugmentConfig
from data_shards.augment.randaugment import RandAugment, draw_color_jitter
from parallel.ranks.host import send


class Augment:
    """Augments batches on `device`. It has no state, so that calls may be repeated, split and reordered.

    `mean` and `std` normalise values in 0 ... 1.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        seed: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device | str = "cpu",
    ) -> None:
        self.config, self.seed, self.device = config, seed, torch.device(device)
        self.rand_augment = RandAugment.parse(config.auto_augment) if config.auto_augment else None
        self.mixer = Mixer(config.mixup_alpha, config.cutmix_alpha, config.mix_prob, config.switch_prob)
        self.normalize = Normalize(mean, std, self.device)
        self.fill = self.normalize.mean.flatten().round().to(torch.uint8)  # (3,)
        self.noise = noise_table().to(self.device)

    def __call__(self, images: Tensor, labels: Tensor, positions: Tensor) -> tuple[Tensor, Targets]:
        """Augment (B, 3, H, W) uint8 with labels and positions (B,) int64: (B, 3, H, W) float32, and targets.

        `images` and `labels` may be on the host or on the device, `positions` must be on the host, where the
        stream has put them. The arguments are left as they are. DataError when a sample's partner in mixup is
        missing.
        """
        if positions.device.type != "cpu":
            raise ValueError(f"positions are on {positions.device}; pass them on the CPU, as the stream does")
        images = images.to(self.device, non_blocking=True, copy=True)
        self.operate(images, positions)
        images = self.normalize(images)
        self.erase(images, positions)
        return self.mix(images, labels, positions)

    def operate(self, images: Tensor, positions: Tensor) -> None:
        """RandAugment or color jitter of images (B, 3, H, W) uint8 on the device, in place.

        Images of one position get the same operations.
        """
        if self.rand_augment:
            plan = self.rand_augment.draw(self.seed, positions, _sides(images))
        elif self.config.color_jitter:
            plan = draw_color_jitter(self.config.color_jitter, self.seed, positions)
        else:
            return
        for ops, arguments in zip(*(column.unbind(1) for column in plan), strict=True):
            operate(images, ops, arguments, self.fill, self.config.resample)

    def erase(self, images: Tensor, positions: Tensor) -> None:
        """Random erasing of images (B, C, H, W) float32, in place."""
        if self.config.erase_prob:
            rectangles = draw_rectangles(self.config.erase_prob, self.seed, positions, _sides(images))
            erase(images, rectangles, self.seed, positions, self.noise)

    def mix(self, images: Tensor, labels: Tensor, positions: Tensor) -> tuple[Tensor, Targets]:
        """Mixup or cutmix of images (B, ..., H, W) float32, whose channels and frames mix alike."""
        labels = send(labels, self.device)
        if not self.config.mixes:
            return images, Targets(labels, labels, torch.ones(len(labels), device=self.device))
        rows = send(partners(positions), self.device)
        mix = self.mixer.draw(self.seed, positions, _sides(images))
        mix = Mix(*(send(part, self.device) for part in mix))
        share = weights(mix, _sides(images)).unflatten(1, (1,) * (images.ndim - 3))
        mixed = torch.lerp(images.index_select(0, rows), images, share)
        return mixed, Targets(labels, labels[rows], mix.lam.float())


def _sides(images: Tensor) -> tuple[int, int]:
    """(H, W) of images (..., H, W)."""
    return images.shape[-2], images.shape[-1]
