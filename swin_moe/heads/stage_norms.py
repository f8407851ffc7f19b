"""Norms of the maps that a dense task reads.

Legend: B images of h x w pixels, s stride of a stage's map, C its channels.
"""

from collections.abc import Sequence

from torch import nn

from swin_moe.backbone.backbone import Features
from swin_moe.errors import require


class StageNorms(nn.ModuleDict):
    """A LayerNorm for the map of each of some stages, for detection and segmentation.

    Maps are those that a stage puts out, before the next one merges them (Liu et al. 2021, figure 3a). The
    backbone before it is built with `norm=False`: each map is normalised here and once.

    Args:
        channels: C of every stage, `Backbone.channels`.
        stages: those whose maps are kept, in increasing order. Blocks after the last one get no gradient: a
            task that does without the last stages has a model of fewer `depths`.

    Raises:
        ModelError: a stage that the model does not have, or stages that are not in order.
    """

    def __init__(self, channels: Sequence[int], stages: Sequence[int]) -> None:
        known = range(len(channels))
        require(
            len(stages) > 0 and list(stages) == [stage for stage in known if stage in stages],
            f"the stages to normalise ({list(stages)}) must be some of {list(known)}, in this order",
        )
        self.channels = tuple(channels[stage] for stage in stages)  # of the maps that are kept
        super().__init__({str(stage): nn.LayerNorm(channels[stage]) for stage in stages})

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages whose maps are kept."""
        return tuple(map(int, self))

    def forward(self, features: Features) -> Features:
        """The maps (B, h / s, w / s, C) of the stages, normalised, their strides, and all MoE statistics."""
        return Features(
            maps=[norm(features.maps[int(stage)]) for stage, norm in self.items()],
            strides=tuple(features.strides[stage] for stage in self.stages),
            moe=features.moe,
        )
