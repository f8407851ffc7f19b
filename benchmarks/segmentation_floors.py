"""What a segmentation model must beat on a packed data set, and what it can reach at most.

    swin-moe shards pack --source fashion-canvas --out data/fashion-canvas
    python benchmarks/segmentation_floors.py data/fashion-canvas --json floors.json

`majority` predicts the most frequent class of the training split everywhere. `linear` is a linear classifier
(softmax, trained by Adam) of the colours around a pixel, so that it knows no shapes. `truth at 1/N` is the
label image at 1/N of its size, enlarged bilinearly: the most that a model with maps of that size reaches.
mIoU is that of the complete validation split, over the classes that occur or are predicted, without pixels
of no class.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.format.index import Manifest
from data_shards.image.annotations import VOID
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling
from data_shards.stream.pixel_labels import PixelLabelImages

Pair = tuple[Tensor, Tensor]  # an image (3, H, W) float32 in 0 ... 1, and its mask (H, W) int64
BATCH = 8192  # pixels of a step


def pairs(split: Path, num_classes: int, limit: int | None = None) -> Iterator[Pair]:
    """Images and masks of a split, at their own size."""
    transform = PixelLabelImages(num_classes=num_classes, long_side=None, short_side=None)
    with EvalStream(split, EvalSampling(batch_size=1, limit=limit), transform) as stream:
        for batch in stream:
            yield batch["image"][0].float() / 255, batch["mask"][0].long()


def patches(image: Tensor, side: int) -> Tensor:
    """The colours around each pixel, and a 1: (3, H, W) -> (H W, 3 side^2 + 1)."""
    padded = F.pad(image[None], (side // 2,) * 4, mode="replicate")
    colours = F.unfold(padded, side)[0].T - 0.5
    return F.pad(colours, (0, 1), value=1.0)


def fit_linear(train: list[Pair], side: int, num_classes: int, steps: int) -> Tensor:
    """The weights of the linear classifier: (3 side^2 + 1, num_classes)."""
    features, labels = [], []
    for image, mask in train:
        known = (mask != VOID).flatten()
        features.append(patches(image, side)[known])
        labels.append(mask.flatten()[known])
    pixels, classes = torch.cat(features), torch.cat(labels)
    generator = torch.Generator().manual_seed(0)
    weights = torch.zeros(pixels.shape[1], num_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(pixels), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(pixels[rows] @ weights, classes[rows]).backward()
        optimizer.step()
        schedule.step()
    return weights.detach()


def reduced_truth(mask: Tensor, num_classes: int, factor: int) -> Tensor:
    """The classes (H, W) of a mask that went through maps of 1/factor of its size."""
    one_hot = F.one_hot(mask.where(mask != VOID, num_classes), num_classes + 1)[..., :-1]
    planes = one_hot.permute(2, 0, 1)[None].float()
    height, width = (max(1, -(-side // factor)) for side in mask.shape)
    planes = F.adaptive_avg_pool2d(planes, (height, width))
    return F.interpolate(planes, mask.shape, mode="bilinear", align_corners=False)[0].argmax(0)


def mean_iou(predict: Callable[[Tensor, Tensor], Tensor], val: list[Pair], num_classes: int) -> float:
    """Mean over classes of the intersection over the union, each counted over all pairs."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    for image, mask in val:
        known = mask != VOID
        both = mask[known] * num_classes + predict(image, mask)[known]
        counts += np.bincount(both.numpy(), minlength=num_classes**2).reshape(num_classes, num_classes)
    intersection, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    return float((intersection[union > 0] / union[union > 0]).mean())


def floors(directory: Path, train_samples: int, steps: int) -> dict[str, float]:
    """mIoU by what predicts."""
    num_classes = len(Manifest.load(directory / "val").classes)
    train = list(pairs(directory / "train", num_classes, train_samples))
    val = list(pairs(directory / "val", num_classes))
    frequency = sum(torch.bincount(mask.flatten(), minlength=VOID + 1)[:num_classes] for _, mask in train)
    majority = int(torch.as_tensor(frequency).argmax())
    found = {"majority": mean_iou(lambda _, mask: torch.full_like(mask, majority), val, num_classes)}
    for side in (1, 5):
        weights = fit_linear(train, side, num_classes, steps)

        def linear(image: Tensor, mask: Tensor, weights: Tensor = weights, side: int = side) -> Tensor:
            return (patches(image, side) @ weights).argmax(1).view_as(mask)

        found[f"linear {side} x {side}"] = mean_iou(linear, val, num_classes)
    for factor in (2, 4):

        def reduced(_: Tensor, mask: Tensor, factor: int = factor) -> Tensor:
            return reduced_truth(mask, num_classes, factor)

        found[f"truth at 1/{factor}"] = mean_iou(reduced, val, num_classes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="the splits train and val")
    parser.add_argument("--train-samples", type=int, default=256, help="for `linear` (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="of `linear` (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()
    found = floors(arguments.directory, arguments.train_samples, arguments.steps)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print(
        "\n".join(["| prediction | mIoU |", "|---|---|", *(f"| {k} | {v:.2%} |" for k, v in found.items())])
    )


if __name__ == "__main__":
    main()
