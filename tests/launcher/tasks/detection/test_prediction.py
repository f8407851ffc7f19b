"""What a detector says, at the size of the images: which places count, and masks as run lengths."""

from unittest.mock import patch

import numpy as np
import pytest
import torch

from launcher.tasks.detection import prediction
from launcher.tasks.detection.metric import DetectionMetric
from launcher.tasks.detection.prediction import BatchDetections, pasted
from swin_moe.detection.paste import paste
from swin_moe.detection.targets import Detections
from tests.launcher.tasks.detection.scenes import batch_of

SIZE = (40, 60)
BOXES = torch.tensor([[2.0, 3, 22, 33], [30, 0, 60, 40], [5.5, 5.25, 18.75, 30], [0, 0, 0, 0]])


def detections(*, masks: bool = True) -> Detections:
    """Three detections of the first of two images, none of the second."""
    draw = torch.Generator().manual_seed(0)
    probabilities = torch.rand(2, 4, 28, 28, generator=draw)
    probabilities[0, :2] = 1.0
    labels = torch.tensor([[1, 0, 1, -1], [-1] * 4])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.0], [0.0] * 4])
    found = probabilities if masks else None
    return Detections(BOXES.repeat(2, 1, 1), scores, labels, found, torch.tensor([True, True]))


def test_places_without_a_detection_are_left_out() -> None:
    found = BatchDetections(detections(), {})
    one, other = (found.of_image(row, SIZE) for row in range(2))
    assert (one.boxes == BOXES[:3].numpy()).all()
    assert one.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert (one.labels.tolist(), one.size) == ([1, 0, 1], SIZE)
    masks = detections().masks
    assert masks is not None
    assert (one.bitmaps() == paste(masks[0, :3], BOXES[:3], SIZE).numpy()).all()
    full = np.zeros((2, *SIZE), np.uint8)
    full[0, 3:33, 2:22] = full[1, :, 30:] = 1
    assert (one.bitmaps()[:2] == full).all()
    assert (len(other.boxes), other.masks, other.bitmaps().shape) == (0, [], (0, *SIZE))
    bare = BatchDetections(detections(masks=False), {}).of_image(0, SIZE)
    assert (bare.masks, len(bare.boxes)) == (None, 3)


def test_parts_of_any_size_give_the_same_masks() -> None:
    masks = torch.rand(5, 28, 28, generator=torch.Generator().manual_seed(1))
    boxes = BOXES[:1].repeat(5, 1) + torch.arange(5)[:, None]
    wanted = pasted(masks, boxes, SIZE)
    assert len(set(wanted)) == 5
    for pixels in (1, 2 * SIZE[0] * SIZE[1]):
        with patch.object(prediction, "AT_ONCE", pixels):
            assert pasted(masks, boxes, SIZE) == wanted


def test_a_detector_that_is_right() -> None:
    """Full masks fill their boxes: both objects are found as they are, and the third detection is ignored
    at all thresholds because recall 1 is reached before."""
    corners = [BOXES[i].tolist() for i in range(2)]
    objects = [
        {
            "id": label,
            "label": label,
            "box": [x1, y1, x2, y2],
            "area": (x2 - x1) * (y2 - y1),
            "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        }
        for label, (x1, y1, x2, y2) in zip((1, 0), corners, strict=True)
    ]
    scene = {"image_id": 3, "height": SIZE[0], "width": SIZE[1], "objects": objects}
    metric = DetectionMetric(2)
    metric.update(BatchDetections(detections(), {}), batch_of([scene, None], [0, -1]))
    metric.reduce()
    values = metric.compute()
    assert (values["box_ap"], values["mask_ap"]) == pytest.approx((1.0, 1.0))
    assert (values["images"], values["detections"]) == (1, 3)
