"""What a local relation layer is: a frozen dataclass, validated when it is built. No torch."""

from dataclasses import dataclass
from typing import Literal

from parallel.ranges import check_ranges
from swin_moe.errors import ModelError

Similarity = Literal["product", "key", "distance", "relative_distance", "relative_square", "square"]
Aggregation = Literal["relation", "content", "prior", "convolution"]
WIDEST = 2**17  # channels of a map


@dataclass(frozen=True, kw_only=True)
class LocalRelationConfig:
    """How a token aggregates its neighbours (Hu et al. 2019, section 3; docs/local_relation.md)."""

    # relation: a softmax over the similarity to a neighbour and a prior of its place; content: over the
    # similarity alone; prior: over the prior alone, static weights; convolution: a convolution in its place
    aggregation: Aggregation = "relation"
    kernel_size: int = 7  # side of the window around a token, in tokens; odd
    # channels that share an aggregation, or of a group of a convolution: the smallest such number from here
    # on that divides the width
    share: int = 8
    similarity: Similarity = "square"  # of a query and a key: docs/local_relation.md has the formulas
    key_channels: int = 1  # of the query and the key of an aggregation
    prior_hidden: int = 32  # hidden channels of the network that makes the prior
    output_transform: bool = True  # a linear layer over the channels after the aggregation

    def __post_init__(self) -> None:
        check_ranges(
            "model.local_relation.",
            self,
            error=ModelError,
            kernel_size=(1, 63),
            share=(1, WIDEST),
            key_channels=(1, 2**12),
            prior_hidden=(1, 2**14),
        )
        if self.kernel_size % 2 == 0:
            raise ModelError(
                f"model.local_relation.kernel_size ({self.kernel_size}) must be odd: a token is in the "
                "centre of its window"
            )

    @property
    def has_keys(self) -> bool:
        """Whether weights depend on the content."""
        return self.aggregation in ("relation", "content")

    def groups(self, channels: int) -> int:
        """Aggregations of so many channels."""
        return next(
            channels // m for m in range(min(self.share, channels), channels + 1) if channels % m == 0
        )


@dataclass(frozen=True, kw_only=True)
class LRNetConfig:
    """A ResNet with local relations (Hu et al. 2019, table 1; docs/local_relation.md).

    `model.depths` are its bottlenecks, and `model.embed_dim` (256) the channels of the first stage's map.
    """

    width: int = 100  # channels that the first stage's bottlenecks aggregate; they double at each stage
    stem_width: int = 64  # channels of the stem
    norm_group_images: int = 32  # consecutive images over which the batch norms take their statistics
    norm_frozen: bool = False  # whether the batch norms keep the running statistics that they were given

    def __post_init__(self) -> None:
        check_ranges(
            "model.lr_net.",
            self,
            error=ModelError,
            width=(1, WIDEST),
            stem_width=(1, WIDEST),
            norm_group_images=(1, 2**20),
        )

    def stage_width(self, stage: int) -> int:
        """Channels that the bottlenecks of a stage aggregate."""
        return self.width * 2**stage
