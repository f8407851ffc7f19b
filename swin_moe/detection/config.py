"""The detector around a backbone: a frozen dataclass, validated when it is built. No torch."""

from dataclasses import dataclass
from typing import Literal

from parallel.ranges import check_ranges
from swin_moe.config import ModelConfig
from swin_moe.errors import ModelError, require

DetectorKind = Literal["mask_rcnn", "cascade_mask_rcnn"]

SECTION = "detection.head."  # of a configuration
PROPOSALS = {"mask_rcnn": 1000, "cascade_mask_rcnn": 2000}  # of an image in training, by kind


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Mask R-CNN (He et al. 2017, arXiv:1703.06870) or Cascade Mask R-CNN (Cai & Vasconcelos 2019,
    arXiv:1906.09756), as published for the Swin family: SwinTransformer/Swin-Transformer-Object-Detection.

    The cascade has three stages, whose box heads have four convolutions with batch norm, and whose boxes are
    regressed by GIoU. Its RPN leaves out anchors that stick out of the image, and its box loss is smooth.
    """

    kind: DetectorKind = "mask_rcnn"  # one stage of heads, or three that refine the boxes of each other
    masks: bool = True  # whether there are mask heads; without them the model predicts boxes alone
    channels: int = 256  # of the feature pyramid, of the RPN and of the convolutions of box heads
    head_channels: int = 1024  # of the fully connected layers of box heads
    mask_channels: int = 256  # of the convolutions of mask heads
    anchor_scale: float = 8.0  # side of a square anchor in strides of its level
    rpn_samples: int = 256  # anchors of an image in the RPN's loss; at most half of them are positive
    pre_nms_train: int = 2000  # proposals of a level and image before non-maximum suppression, in training
    pre_nms_test: int = 1000  # and in evaluation
    proposal_nms_threshold: float = 0.7  # IoU above which the lower proposal of two of a level is removed
    train_proposals: int | None = None  # of an image after it, in training; null: 1000, of a cascade 2000
    test_proposals: int = 1000  # and in evaluation
    roi_samples: int = 512  # of an image in the loss of a box head; at most a quarter of them are positive
    score_threshold: float = 0.05  # detections have a higher score
    nms_threshold: float = 0.5  # IoU above which the lower detection of two of a class is removed
    detections: int = 100  # of an image at most
    norm_group_images: int = 1  # consecutive images whose RoIs are a group of the cascade's batch norms
    norm_frozen: bool = False  # whether the batch norms keep the running statistics that they were given

    def __post_init__(self) -> None:
        width, count, share = (1, 2**14), (1, 2**20), (0, 1)
        check_ranges(
            SECTION,
            self,
            error=ModelError,
            channels=width,
            head_channels=width,
            mask_channels=width,
            anchor_scale=(0.01, 1000),
            rpn_samples=(2, 2**20),
            pre_nms_train=count,
            pre_nms_test=count,
            proposal_nms_threshold=share,
            test_proposals=count,
            roi_samples=(4, 2**20),
            score_threshold=share,
            nms_threshold=share,
            detections=count,
            norm_group_images=count,
        )
        require(
            self.train_proposals is None or count[0] <= self.train_proposals <= count[1],
            f"{SECTION}train_proposals ({self.train_proposals}) must lie in 1..{count[1]}, or be null",
        )

    @property
    def is_cascade(self) -> bool:
        """Whether box heads refine the boxes of each other."""
        return self.kind == "cascade_mask_rcnn"

    @property
    def proposals_in_training(self) -> int:
        """`train_proposals`, or what is published for this kind."""
        return PROPOSALS[self.kind] if self.train_proposals is None else self.train_proposals

    @property
    def anchor_border(self) -> int:
        """Pixels by which a training anchor may stick out of the image; -1: by any number."""
        return 0 if self.is_cascade else -1

    @property
    def rpn_beta(self) -> float:
        """Up to which difference the RPN's box loss is quadratic; 0: it is the L1 loss."""
        return 1 / 9 if self.is_cascade else 0.0

    @property
    def rpn_positives(self) -> int:
        """Positive anchors of an image at most."""
        return self.rpn_samples // 2

    @property
    def roi_positives(self) -> int:
        """Positive RoIs of an image at most, which are those of the mask loss."""
        return self.roi_samples // 4


def check_model(model: ModelConfig) -> None:
    """Whether a model has the maps that a feature pyramid reads.

    Raises:
        ModelError: it has not.
    """
    stages = len(model.depths)
    require(
        stages > 1,
        f"a detector needs at least two maps: model.depths ({list(model.depths)}) has {stages} stage",
    )
