"""What SimMIM hides and predicts: a frozen dataclass, validated when it is built."""

from dataclasses import dataclass

from parallel.ranges import check_ranges
from swin_moe.errors import ModelError, require


@dataclass(frozen=True, kw_only=True)
class SimMIMConfig:
    """What is hidden and what is predicted."""

    mask_patch_size: int = 32  # side of what is hidden at once, in pixels; a multiple of the model's patch
    mask_ratio: float = 0.6  # share of an image's mask patches that are hidden, rounded up
    # side of the window of pixels by whose mean and standard deviation a target is normalised (SwinV2: 47);
    # 0 predicts the pixels as they are
    norm_target_window: int = 0
    # k of a k-NN among the labelled images of an evaluation, on features of the images without a mask, which
    # take a second forward pass; 0 for none
    eval_neighbours: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            "simmim.",
            self,
            error=ModelError,
            mask_patch_size=(1, 2**14),
            norm_target_window=(0, 2**14),
            eval_neighbours=(0, 1000),
        )
        require(0 < self.mask_ratio <= 1, f"simmim.mask_ratio ({self.mask_ratio}) must lie in (0, 1]")
        window = self.norm_target_window
        require(
            window == 0 or (window >= 3 and window % 2 == 1),
            f"simmim.norm_target_window ({window}) must be 0 or an odd number above 1",
        )
