"""Small detectors, and images with objects for them."""

from typing import Any

import torch
from torch import Tensor

from swin_moe.config import ModelConfig
from swin_moe.detection.config import DetectorConfig, DetectorKind
from swin_moe.detection.detector import Detector, build_detector
from swin_moe.detection.targets import Targets
from swin_moe.random.keyed import sample_keys
from tests.models import randn, small_swin

CLASSES = 5
MODEL: ModelConfig = small_swin(
    image_size=64, depths=(1, 1, 1), num_heads=(1, 2, 4), window_padding="visible"
)
CANVAS = 64  # pixels
SIZES = torch.tensor([[60, 64], [64, 52], [64, 64]])
KEYS = sample_keys(7, torch.arange(3))
KINDS: tuple[DetectorKind, ...] = ("mask_rcnn", "cascade_mask_rcnn")
# class, and x1 y1 x2 y2 of the rectangle that is the mask of an object
OBJECTS = [
    [(1, (4, 6, 30, 40)), (4, (20, 10, 60, 58)), (0, (40, 2, 52, 14))],
    [(2, (10, 10, 45, 60))],
    [],
]


def config_of(kind: DetectorKind, **changes: Any) -> DetectorConfig:
    """Few channels, regions and detections; the batch norms of a cascade take one image."""
    small: dict[str, Any] = {
        "channels": 8,
        "head_channels": 12,
        "mask_channels": 6,
        "anchor_scale": 2.0,
        "rpn_samples": 32,
        "train_proposals": 40,
        "test_proposals": 30,
        "roi_samples": 24,
        "detections": 10,
        "norm_group_images": 1,
    }
    return DetectorConfig(kind=kind, **(small | changes))


def detector(kind: DetectorKind, *, spread: float = 0.0, **changes: Any) -> Detector:
    """With initial weights; `spread` of the classifier's makes detections of an untrained model."""
    model = build_detector(MODEL, config_of(kind, **changes), seed=3)
    if spread:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "fc_cls.weight" in name or "fc_reg.weight" in name:
                    parameter.copy_(spread * randn(*parameter.shape, seed=11))
    return model


def images() -> Tensor:
    """(3, 3, 64, 64), padded with zeros as `SIZES` says."""
    x = randn(3, 3, CANVAS, CANVAS, seed=2)
    for image, (height, width) in zip(x, SIZES.tolist(), strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return x


def run_lengths(mask: Tensor) -> list[int]:
    """Runs of zeros and ones in turn, zeros first, row by row."""
    runs, value = [0], 0
    for pixel in mask.flatten().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def targets(numbers: list[int], *, places: int | None = None) -> Targets:
    """The objects of some of the images; `places` for them at least."""
    count = max(places or 0, *(len(OBJECTS[number]) for number in numbers))
    boxes, labels = torch.zeros(len(numbers), count, 4), torch.full((len(numbers), count), -1)
    runs: list[int] = []
    offsets = torch.zeros(len(numbers), count + 1, dtype=torch.int64)
    for row, number in enumerate(numbers):
        height, width = SIZES[number].tolist()
        offsets[row, 0] = len(runs)
        for g in range(count):
            if g < len(OBJECTS[number]):
                label, (x1, y1, x2, y2) = OBJECTS[number][g]
                mask = torch.zeros(height, width, dtype=torch.int64)
                mask[y1:y2, x1:x2] = 1
                boxes[row, g], labels[row, g] = torch.tensor([x1, y1, x2, y2]).float(), label
                runs += run_lengths(mask)
            offsets[row, g + 1] = len(runs)
    return Targets(boxes, labels, torch.tensor(runs, dtype=torch.int32), offsets)
