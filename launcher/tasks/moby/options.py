"""The options of MoBY: the section `moby` of a run. No torch."""

from dataclasses import dataclass, field

from data_shards.augment.view_options import ViewColours
from parallel.ranges import check_ranges
from swin_moe.heads.moby_config import MoBYConfig

VIEWS = 2


@dataclass(frozen=True, kw_only=True)
class MoBYOptions:
    """The heads, the contrast, the target network, and the colours of views; the defaults are as published.

    A view is a crop of `data.crop_scale` and `data.crop_ratio`, mirrored with `data.flip_probability`. The
    target network has no drop path; that of the online network is `model.drop_path_rate`.
    """

    head: MoBYConfig = field(default_factory=MoBYConfig)
    queue: int = 4096  # keys of earlier samples in the queue of each view; a multiple of the global batch
    temperature: float = 0.2  # that cosines are divided by
    # of the target network at the start: target = momentum * target + (1 - momentum) * online; from there to
    # the next value, that of the last step, by half a cosine
    momentum: float = 0.99
    momentum_end: float = 1.0  # the same number as momentum: it is constant
    colours: ViewColours = field(default_factory=ViewColours)  # BYOL's operations on each view
    pictures: int = 8  # samples of an evaluation whose views are shown

    def __post_init__(self) -> None:
        check_ranges(
            "moby.",
            self,
            queue=(1, 2**24),
            temperature=(1e-4, 1e4),
            momentum=(0, 1),
            momentum_end=(0, 1),
            pictures=(0, 1000),
        )
        if self.colours.views != VIEWS:
            raise ValueError(
                f"moby.colours.blur_prob ({list(self.colours.blur_prob)}) and moby.colours.solarize_prob "
                f"must have one value for each of the {VIEWS} views"
            )
