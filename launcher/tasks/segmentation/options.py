"""The options of semantic segmentation: the section `segmentation` of a run. No torch."""

from dataclasses import dataclass, field
from typing import Literal

from parallel.ranges import check_ranges
from swin_moe.heads.upernet_config import LossOver, UPerNetConfig

EvalMode = Literal["whole", "slide"]


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """The heads, the loss, the crops of training, and how an image is evaluated.

    A crop has the size of `model.image_size`, and `data.flip_probability` mirrors it.
    """

    head: UPerNetConfig = field(default_factory=UPerNetConfig)
    auxiliary_weight: float = 0.4  # of the auxiliary head's loss beside that of the decode head
    # what the loss of an image is divided by: all its pixels, as published, or those that have a label
    loss_over: LossOver = "all"
    long_side: int = 2048  # pixels that the longer side of an image is scaled to at most, times a ratio
    short_side: int = 512  # and the shorter one; the image just fits both bounds and keeps its shape
    ratio_range: tuple[float, float] = (0.5, 2.0)  # of the ratio in training, drawn uniformly
    # a crop in which one class has this share of the labelled pixels is drawn again, at most ten times; 1.0:
    # never
    max_class_share: float = 0.75
    photometric: bool = True  # distort brightness, contrast, saturation and hue in training
    antialias: bool = False  # of the scaling; false is the published rule
    eval_fit: bool = True  # scale to the bounds in evaluation too; false: each image has its own size
    eval_mode: EvalMode = "whole"  # the complete image at once, or windows that slide over it
    eval_crop: int | None = None  # side of a window in pixels; null: that of model.image_size
    eval_stride: int | None = None  # pixels from a window to the next; null: two thirds of the window
    eval_windows: int = 4  # windows of an image in one forward pass
    eval_ratios: tuple[float, ...] = (1.0,)  # an image is evaluated at each; probabilities are averaged
    eval_flip: bool = False  # and mirrored at each of them
    eval_band: int = 128  # rows of the result computed at once, which bounds the memory
    pictures: int = 4  # images of an evaluation that are shown beside their labels and the prediction

    def __post_init__(self) -> None:
        side = (1, 2**14)
        check_ranges(
            "segmentation.",
            self,
            auxiliary_weight=(0, 1000),
            long_side=side,
            short_side=side,
            ratio_range=(0.01, 100),
            eval_windows=(1, 2**16),
            eval_ratios=(0.01, 100),
            eval_band=(1, 2**20),
            pictures=(0, 1000),
        )
        for name in ("eval_crop", "eval_stride"):
            value = getattr(self, name)
            if value is not None and not side[0] <= value <= side[1]:
                raise ValueError(
                    f"segmentation.{name} ({value}) must lie in {side[0]}..{side[1]}, or be null"
                )
        if self.short_side > self.long_side:
            raise ValueError(
                f"segmentation.short_side ({self.short_side}) must be at most segmentation.long_side "
                f"({self.long_side})"
            )
        if self.ratio_range[0] > self.ratio_range[1]:
            low, high = self.ratio_range
            raise ValueError(f"segmentation.ratio_range ([{low}, {high}]) must be two numbers, low <= high")
        if not 0 < self.max_class_share <= 1:
            raise ValueError(f"segmentation.max_class_share ({self.max_class_share}) must lie in (0, 1]")
        if not self.eval_ratios or len(set(self.eval_ratios)) < len(self.eval_ratios):
            raise ValueError(
                f"segmentation.eval_ratios ({list(self.eval_ratios)}) must be one or more different numbers"
            )
