"""What a detector says of a batch, as the metric, the answers and the pictures read it.

Legend: n detections of an image of H x W pixels.
"""

from typing import NamedTuple

from torch import Tensor

from launcher.tasks.detection.detections import ImageDetections, encode_masks
from swin_moe.detection.paste import paste
from swin_moe.detection.targets import Detections
from swin_moe.moe.layer import MoEStats

AT_ONCE = 2**26  # pixels of masks that are pasted at once


class BatchDetections(NamedTuple):
    """The detections of a batch: see `DetectionPrediction`."""

    detections: Detections
    moe: dict[str, MoEStats]

    @property
    def finite(self) -> list[bool]:
        """Whether all that the model computed of each image is finite."""
        return self.detections.finite.tolist()

    def of_image(self, row: int, size: tuple[int, int]) -> ImageDetections:
        """The detections of an image of the batch at its own size; masks are pasted and encoded here."""
        boxes, scores, labels, masks, _ = self.detections
        there = labels[row] >= 0
        encoded = None
        if masks is not None:
            encoded = pasted(masks[row][there], boxes[row][there], size)
        return ImageDetections(
            boxes=boxes[row][there].cpu().numpy(),
            scores=scores[row][there].cpu().numpy(),
            labels=labels[row][there].cpu().numpy(),
            size=size,
            masks=encoded,
        )


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[bytes]:
    """Masks as COCO's compressed RLE at the size of the image, whatever their number is in bounded memory.

    Args:
        masks: (n, side, side) probabilities inside of each box.
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the image.
        size: its height and width.
    """
    count = max(1, AT_ONCE // (size[0] * size[1]))
    parts = zip(masks.split(count), boxes.split(count), strict=True)
    return [counts for some, around in parts for counts in encode_masks(paste(some, around, size))]
