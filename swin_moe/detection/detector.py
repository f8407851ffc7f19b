"""Object detection and instance segmentation: Mask R-CNN or its cascade on the maps of any backbone.

Names of parameters are those of the published detectors (SwinTransformer/Swin-Transformer-Object-Detection);
the backbone is `encoder` and the norms of its maps are `stage_norms`. All ranks call the same modules in the
same order, whatever their images are.

Legend: B images of h x w pixels, s stride of a map, C its channels, S stages of heads.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import ExpertParallel
from parallel.ranks.mesh import Mesh
from swin_moe.backbone.backbone import Backbone, total_loss
from swin_moe.backbone.model import construct
from swin_moe.config import ModelConfig
from swin_moe.detection.cascade import Regions
from swin_moe.detection.config import DetectorConfig, check_model
from swin_moe.detection.fpn import FPN
from swin_moe.detection.roi_head import RoIHead
from swin_moe.detection.rpn import RPNHead, RPNOutput, propose, rpn_loss
from swin_moe.detection.targets import Detections, Targets
from swin_moe.errors import require
from swin_moe.finite import finite_images
from swin_moe.heads.stage_norms import StageNorms
from swin_moe.moe.layer import MoEStats
from swin_moe.moe.overrides import RoutingOverrides


class DetectorLosses(NamedTuple):
    """What a detector gives in training: its losses, which are means over images, and MoE statistics."""

    rpn_objectness: Tensor  # scalar fp32
    rpn_box: Tensor  # scalar fp32
    box_class: Tensor  # (S,) fp32, with the weights of the stages in them; so are the next two
    box_regression: Tensor  # (S,) fp32
    mask: Tensor | None  # (S,) fp32; None in a model without masks
    moe: dict[str, MoEStats]

    @property
    def terms(self) -> dict[str, Tensor]:
        """Each loss by its name, a scalar; those of a cascade with the number of the stage."""
        named: dict[str, Tensor] = {"rpn_objectness": self.rpn_objectness, "rpn_box": self.rpn_box}
        by_stage = {"box_class": self.box_class, "box_regression": self.box_regression, "mask": self.mask}
        for name, losses in by_stage.items():
            if losses is not None:
                several = len(losses) > 1
                named |= {f"{name}_{stage}" if several else name: loss for stage, loss in enumerate(losses)}
        return named

    @property
    def total(self) -> Tensor:
        """The sum of all: scalar, without those of MoE layers."""
        return torch.stack(list(self.terms.values())).sum()

    @property
    def aux_loss(self) -> Tensor:
        """The weighted auxiliary losses of all MoE layers, summed: scalar."""
        return total_loss(self.moe, self.rpn_box.device)


class DetectorOutput(NamedTuple):
    """What a detector gives in evaluation: detections, and MoE statistics."""

    detections: Detections
    moe: dict[str, MoEStats]


class Detector(nn.Module):
    """Any backbone with norms of its maps, a feature pyramid, proposals, and heads for boxes and masks.

    Args:
        model: the encoder; `num_classes` is that of objects, without the background.
        config: of the rest.
        placement: where the experts are; needed when the model has any.

    Raises:
        ModelError: of `check_model`.
    """

    def __init__(
        self, model: ModelConfig, config: DetectorConfig, placement: ExpertParallel | None = None
    ) -> None:
        super().__init__()
        check_model(model)
        self.config = config
        self.encoder = Backbone(model, placement, norm=False)
        channels, strides = self.encoder.channels, self.encoder.strides
        self.stage_norms = StageNorms(channels, range(len(channels)))
        self.neck = FPN(channels, config.channels)
        self.rpn_head = RPNHead(config.channels, (*strides, 2 * strides[-1]), config.anchor_scale)
        self.roi_head = RoIHead(config, strides, model.num_classes)

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        keys: Tensor | None = None,
        targets: Targets | None = None,
        call: RoutingOverrides | None = None,
        scales: Tensor | None = None,
    ) -> DetectorLosses | DetectorOutput:
        """The losses in training, otherwise the detections.

        Args:
            images: (B, in_chans, h, w) of any size, normalised, padded at the right and the bottom.
            sizes: (B, 2) int64 height and width of each without padding, in pixels.
            keys: (B,) int64 of `sample_keys`; see `forward_features`.
            targets: the objects; needed in training.
            call: as in `forward_features`.
            scales: (B, 2) fp32 height and width of each by those of the original image, in whose pixels boxes
                are given; None: they are in pixels of the canvas.

        Raises:
            ModelError: a training model without targets.
        """
        keys = self.encoder.drawn_keys(images) if keys is None else keys
        features = self.stage_norms(self.encoder.forward_features(images, keys, call))
        maps = self.neck([x.permute(0, 3, 1, 2) for x in features.maps])
        rpn = self.rpn_head(maps)
        regions = self._proposals(rpn, sizes)
        if not self.training:
            scales = torch.ones(len(sizes), 2, device=images.device) if scales is None else scales
            found = self.roi_head.detect(maps, regions, sizes, scales)
            finite = found.finite & finite_images(*rpn.logits, *rpn.deltas)
            return DetectorOutput(found._replace(finite=finite), features.moe)
        require(targets is not None, "a detector in training needs the targets of its images")
        assert targets is not None
        config = self.config
        rpn_losses = rpn_loss(
            rpn,
            sizes,
            targets,
            keys,
            samples=config.rpn_samples,
            max_positive=config.rpn_positives,
            border=config.anchor_border,
            beta=config.rpn_beta,
        )
        roi_losses = self.roi_head.losses(maps, regions, sizes, targets, keys)
        return DetectorLosses(
            rpn_objectness=rpn_losses.objectness,
            rpn_box=rpn_losses.box,
            box_class=roi_losses.box_class,
            box_regression=roi_losses.box_regression,
            mask=roi_losses.mask,
            moe=features.moe,
        )

    def _proposals(self, rpn: RPNOutput, sizes: Tensor) -> Regions:
        config = self.config
        proposals = propose(
            rpn,
            sizes,
            pre_nms=config.pre_nms_train if self.training else config.pre_nms_test,
            count=config.proposals_in_training if self.training else config.test_proposals,
            nms_threshold=config.proposal_nms_threshold,
        )
        return Regions(proposals.boxes, proposals.valid)


def build_detector(
    model: ModelConfig,
    config: DetectorConfig,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    sharded: bool = False,
    exchange: ExchangeOptions | None = None,
) -> Detector:
    """A model with initial weights that depend on (model, config, seed) alone; see `build_model`.

    The batch norms of a cascade over groups that span ranks need `span_ranks` before training.
    """

    def make(model: ModelConfig, placement: ExpertParallel | None) -> Detector:
        return Detector(model, config, placement)

    return construct(
        make, model, seed=seed, mesh=mesh, sharded=sharded, exchange=exchange or ExchangeOptions()
    )
