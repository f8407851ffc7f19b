"""The heads of MoBY: a frozen dataclass, validated when it is built. No torch."""

from dataclasses import dataclass

from parallel.ranges import check_ranges
from swin_moe.errors import ModelError

SECTION = "moby.head."  # of a configuration


@dataclass(frozen=True, kw_only=True)
class MoBYConfig:
    """The projector and the predictor, each of two linear layers with a batch norm between them."""

    hidden_dim: int = 4096  # channels between the two layers
    out_dim: int = 256  # channels of a projection and of a prediction
    # consecutive images over which the batch norms take their statistics; as published: the global batch
    norm_group_images: int = 64

    def __post_init__(self) -> None:
        check_ranges(
            SECTION,
            self,
            error=ModelError,
            hidden_dim=(1, 2**16),
            out_dim=(1, 2**16),
            norm_group_images=(2, 2**20),
        )
