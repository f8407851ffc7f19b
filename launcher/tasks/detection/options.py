"""The options of object detection: the section `detection` of a run. No torch."""

from dataclasses import dataclass, field
from typing import Literal

from parallel.ranges import check_ranges
from swin_moe.detection.config import DetectorConfig

SIDE = (1, 2**14)  # in pixels
Evaluator = Literal["pycocotools", "faster_coco_eval"]


@dataclass(frozen=True, kw_only=True)
class DetectionOptions:
    """The detector, how images are scaled in training and in evaluation, and what is shown.

    An image keeps its shape. It is scaled until its short side has `short_sides` pixels or its long side has
    `long_side`, whichever comes first, and `data.flip_probability` mirrors it. The result lies at the top
    left of a canvas, which depends on the size of the result alone.
    """

    head: DetectorConfig = field(default_factory=DetectorConfig)
    short_sides: tuple[int, ...] = (800,)  # pixels; one of them is drawn in training
    long_side: int = 1333  # pixels that the long side has at most
    # probability in training that an image is first scaled to one of crop_short_sides and cut
    crop_probability: float = 0.0
    crop_short_sides: tuple[int, ...] = (400, 500, 600)  # pixels; one of them is drawn
    crop_sides: tuple[int, int] = (384, 600)  # pixels: the range of the height and of the width of the cut
    eval_short_side: int = 800  # pixels
    # canvases in pixels, height and width: an image lies on the smallest that holds it, and micro-batches of
    # several images need exactly one. Empty: both sides are rounded up to a multiple of canvas_multiple
    canvases: tuple[tuple[int, int], ...] = ()
    canvas_multiple: int = 32  # pixels
    pictures: int = 4  # images of an evaluation that are shown beside their objects and the detections
    picture_score: float = 0.3  # that a detection in a picture has at least
    # what computes COCO's figures; faster_coco_eval gives the same ones sooner, where it is installed
    evaluator: Evaluator = "pycocotools"

    def __post_init__(self) -> None:
        check_ranges(
            "detection.",
            self,
            short_sides=SIDE,
            crop_probability=(0, 1),
            crop_short_sides=SIDE,
            crop_sides=SIDE,
            long_side=SIDE,
            eval_short_side=SIDE,
            canvas_multiple=(1, 1024),
            pictures=(0, 1000),
            picture_score=(0, 1),
        )
        for name in ("short_sides", "crop_short_sides") if self.crop_probability else ("short_sides",):
            sides = list(getattr(self, name))
            if not sides:
                raise ValueError(
                    f"detection.{name} ([]) must be one or more numbers of pixels, such as [800]"
                )
            if max(sides) > self.long_side:
                raise ValueError(
                    f"detection.{name} ({sides}) must be at most detection.long_side ({self.long_side})"
                )
        if self.eval_short_side > self.long_side:
            raise ValueError(
                f"detection.eval_short_side ({self.eval_short_side}) must be at most detection.long_side "
                f"({self.long_side})"
            )
        if self.crop_sides[0] > self.crop_sides[1]:
            raise ValueError(
                f"detection.crop_sides ({list(self.crop_sides)}) must be two numbers, low <= high"
            )
        for canvas in self.canvases:
            if not all(SIDE[0] <= side <= SIDE[1] for side in canvas):
                raise ValueError(
                    f"detection.canvases ({[list(one) for one in self.canvases]}) must be pairs of height "
                    f"and width, each in {SIDE[0]}..{SIDE[1]} pixels"
                )
