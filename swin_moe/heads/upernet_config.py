"""The heads of a semantic segmentation model: a frozen dataclass, validated when it is built. No torch."""

from dataclasses import dataclass
from typing import Literal

from parallel.ranges import check_ranges
from swin_moe.config import ModelConfig
from swin_moe.errors import ModelError, require

LossOver = Literal["all", "valid"]  # what the loss of an image is divided by: see heads/segmentation.py
IGNORED = 255  # the label of pixels without one

SECTION = "segmentation.head."  # of a configuration


@dataclass(frozen=True, kw_only=True)
class UPerNetConfig:
    """UPerNet (Xiao et al. 2018, arXiv:1807.10221, section 3) and the auxiliary head of Swin's authors."""

    channels: int = 512  # of the decode head
    pool_bins: tuple[int, ...] = (1, 2, 3, 6)  # sides of the pyramid pooling of the last map
    auxiliary_channels: int = 256  # of the auxiliary head, which training alone has; 0: no such head
    auxiliary_stage: int = 2  # whose map the auxiliary head reads; the first is 0
    dropout: float = 0.1  # probability that a channel is dropped before a classifier of pixels
    norm_group_images: int = 16  # consecutive images over which the heads' batch norms take their statistics
    norm_frozen: bool = False  # whether the batch norms keep the running statistics that they were given

    def __post_init__(self) -> None:
        check_ranges(
            SECTION,
            self,
            error=ModelError,
            channels=(1, 2**14),
            auxiliary_channels=(0, 2**14),
            auxiliary_stage=(0, 1000),
            norm_group_images=(1, 2**20),
        )
        require(
            len(self.pool_bins) > 0 and all(1 <= bins <= 64 for bins in self.pool_bins),
            f"{SECTION}pool_bins ({list(self.pool_bins)}) must be one or more sides in 1..64",
        )
        require(
            self.norm_group_images > 1 or self.norm_frozen or 1 not in self.pool_bins,
            f"{SECTION}norm_group_images (1) must be at least 2 with a pool of one bin "
            f"({SECTION}pool_bins={list(self.pool_bins)}): the mean over an image has one value a channel, "
            "which has no variance",
        )
        require(0 <= self.dropout < 1, f"{SECTION}dropout ({self.dropout}) must lie in [0, 1)")


def check_model(model: ModelConfig, config: UPerNetConfig) -> None:
    """Whether a model has the stages that its heads read, and classes that labels of 8 bits can have.

    Raises:
        ModelError: it does not.
    """
    stages = len(model.depths)
    require(
        stages > 1, f"UPerNet needs at least two maps: model.depths ({list(model.depths)}) has {stages} stage"
    )
    require(
        not config.auxiliary_channels or config.auxiliary_stage < stages,
        f"{SECTION}auxiliary_stage ({config.auxiliary_stage}) must be a stage of model.depths "
        f"({list(model.depths)}), which are 0..{stages - 1}",
    )
    require(
        model.num_classes <= IGNORED,
        f"model.num_classes ({model.num_classes}) must be at most {IGNORED} for segmentation: labels have 8 "
        f"bits, and {IGNORED} is an ignored pixel",
    )
