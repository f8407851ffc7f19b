"""What a detector does with proposals: in training the losses of its heads, in evaluation detections.

Names of parameters are those of the published detectors: `bbox_head` and `mask_head`, and in a cascade
`bbox_head.{i}` and `mask_head.{i}`.

Legend: B images, C channels, P proposals and R places for regions of an image, S stages, K classes, D places
for detections, n regions whose masks are computed.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from swin_moe.detection import box_head, mask_head
from swin_moe.detection.box_head import BoxHead, BoxPredictions
from swin_moe.detection.boxes import BoxCoder
from swin_moe.detection.cascade import STAGES, Regions, RegionSample, draw_regions, next_regions, refine
from swin_moe.detection.config import DetectorConfig
from swin_moe.detection.losses import class_loss, mask_loss
from swin_moe.detection.mask_head import MASK_SIDE, MaskHead
from swin_moe.detection.mask_runs import mask_targets
from swin_moe.detection.nms import ClassDetections, class_nms
from swin_moe.detection.roi import RoIAlign
from swin_moe.detection.targets import Detections, Targets, take_objects
from swin_moe.finite import finite_images
from swin_moe.heads.conv_blocks import NormOptions
from swin_moe.moe.routers.base import to_fp32


class RoILosses(NamedTuple):
    """The losses of each stage, with the weight of the stage in them."""

    box_class: Tensor  # (S,) fp32
    box_regression: Tensor  # (S,) fp32
    mask: Tensor | None  # (S,) fp32; None without mask heads


class RoIHead(nn.Module):
    """A box head and a mask head for each stage.

    Args:
        config: of the detector.
        strides: of the levels that regions are read from, in pixels, from fine to coarse.
        num_classes: K.
    """

    def __init__(self, config: DetectorConfig, strides: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.stages = config, num_classes, STAGES[config.kind]
        self.coders = [BoxCoder(stage.stds) for stage in self.stages]
        norm = NormOptions(config.norm_group_images, config.norm_frozen)
        finest = box_head.SIDE * 2.0 * strides[0]
        self.box_align = RoIAlign(strides, box_head.SIDE, finest)
        self.mask_align = RoIAlign(strides, mask_head.SIDE, finest)
        channels, width = config.channels, config.head_channels
        self.bbox_head = _one_or_all(
            [
                BoxHead(channels, width, num_classes, convs=stage.convs, fcs=stage.fcs, norm=norm)
                for stage in self.stages
            ]
        )
        self.mask_head = None
        if config.masks:
            masks = [MaskHead(channels, config.mask_channels, num_classes) for _ in self.stages]
            self.mask_head = _one_or_all(masks)

    @property
    def box_heads(self) -> list[BoxHead]:
        """Of each stage."""
        return cast(list[BoxHead], _listed(self.bbox_head))

    @property
    def mask_heads(self) -> list[MaskHead]:
        """Of each stage; none in a model without masks."""
        return cast(list[MaskHead], _listed(self.mask_head))

    def losses(
        self, maps: Sequence[Tensor], regions: Regions, sizes: Tensor, targets: Targets, keys: Tensor
    ) -> RoILosses:
        """The losses of all stages.

        Args:
            maps: (B, C, H, W) of each level.
            regions: the proposals.
            sizes: (B, 2) height and width of the images without padding, in pixels.
            targets: the objects.
            keys: (B,) of the images.
        """
        losses: dict[str, list[Tensor]] = {name: [] for name in RoILosses._fields}
        for number, (stage, coder) in enumerate(zip(self.stages, self.coders, strict=True)):
            drawn = draw_regions(regions, targets, keys, stage, number, self.config, self.num_classes)
            predictions = self._predict(number, maps, drawn.boxes, drawn.weight)
            objects = take_objects(targets.boxes, drawn.owner)
            logits, deltas = predictions
            box = stage.box_loss(deltas, drawn.labels, drawn.boxes, objects, coder)
            losses["box_class"].append(stage.loss_weight * class_loss(logits, drawn.labels, drawn.weight))
            losses["box_regression"].append(stage.loss_weight * box)
            if self.mask_heads:
                mask = self._mask_loss(number, maps, drawn, sizes, targets)
                losses["mask"].append(stage.loss_weight * mask)
            if number + 1 < len(self.stages):
                regions = next_regions(drawn, predictions, coder, sizes)
        of_stages = {name: torch.stack(values) if values else None for name, values in losses.items()}
        return RoILosses(**of_stages)  # type: ignore[arg-type]

    @torch.no_grad()
    def detect(self, maps: Sequence[Tensor], regions: Regions, sizes: Tensor, scales: Tensor) -> Detections:
        """The detections of each image.

        The logits of the stages are averaged; the boxes are those of the last.

        Args:
            maps: (B, C, H, W) of each level.
            regions: the proposals.
            sizes: (B, 2) height and width of the images without padding, in pixels.
            scales: (B, 2) height and width of an image by those of the original; boxes are divided by them.
        """
        boxes, logits = regions.boxes, []
        for number, coder in enumerate(self.coders):
            predictions = self._predict(number, maps, boxes)
            logits.append(to_fp32(predictions.logits))
            if number + 1 < len(self.stages):
                boxes = refine(boxes, predictions, coder, sizes)
        scores = torch.stack(logits).mean(0).softmax(1)[:, :-1].view(*boxes.shape[:2], -1)
        deltas = predictions.deltas.view(*boxes.shape[:2], -1, 4)
        of_classes = coder.decode(boxes[:, :, None], deltas, sizes[:, None, None])
        factors = scales.float().flip(1).repeat(1, 2)  # (B, 4), of x y x y
        of_classes = of_classes / factors[:, None, None]
        images = zip(of_classes, scores, regions.valid, strict=True)
        found = _stacked([self._best(*image) for image in images])
        masks = self._masks(maps, found.boxes * factors[:, None], found.labels) if self.mask_heads else None
        finite = finite_images(scores, of_classes, *([] if masks is None else [masks]))
        return Detections(found.boxes, found.scores, found.labels, masks, finite)

    def _best(self, boxes: Tensor, scores: Tensor, valid: Tensor) -> ClassDetections:
        """The detections of an image: (R, K, 4), (R, K), (R,) -> D of them."""
        config = self.config
        return class_nms(
            boxes,
            scores,
            valid,
            score_threshold=config.score_threshold,
            nms_threshold=config.nms_threshold,
            count=config.detections,
        )

    def _predict(
        self, number: int, maps: Sequence[Tensor], boxes: Tensor, weight: Tensor | None = None
    ) -> BoxPredictions:
        """What the box head of a stage says of boxes (B, R, 4)."""
        features = self.box_align(maps, boxes).to(maps[0].dtype)
        predictions: BoxPredictions = self.box_heads[number](features, weight)
        return predictions

    def _mask_loss(
        self, number: int, maps: Sequence[Tensor], drawn: RegionSample, sizes: Tensor, targets: Targets
    ) -> Tensor:
        """The mask loss of a stage on its positive regions."""
        features, image, place = self._mask_features(maps, drawn.boxes, drawn.owner >= 0)
        first = slice(0, int(place.max()) + 1)
        wanted = mask_targets(drawn.boxes[:, first], drawn.owner[:, first], targets, sizes, MASK_SIDE)
        owner, labels = drawn.owner[image, place], drawn.labels[image, place]
        logits = self.mask_heads[number](features)
        counted = torch.where(owner >= 0, image, -1)
        return mask_loss(logits, labels, wanted[image, place], counted, len(sizes))

    def _masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """The masks of detections at boxes (B, D, 4) of the canvas, of classes (B, D): (B, D, 2 s, 2 s)."""
        features, image, place = self._mask_features(maps, boxes, labels >= 0)
        classes = labels[image, place].clamp_min(0)
        rows = torch.arange(len(classes), device=classes.device)
        masks = [to_fp32(head(features)[rows, classes]).sigmoid() for head in self.mask_heads]
        result = torch.zeros(*labels.shape, MASK_SIDE, MASK_SIDE, device=boxes.device)
        result[image, place] = torch.stack(masks).mean(0) * (labels[image, place] >= 0)[:, None, None]
        return result

    def _mask_features(
        self, maps: Sequence[Tensor], boxes: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The features of some regions; where none is wanted, of one, so that every rank runs the mask heads.

        Args:
            maps: (B, C, H, W) of each level.
            boxes: (B, R, 4).
            wanted: (B, R) bool.

        Returns:
            Features (n, C, s, s), and the image and the place of each: (n,) and (n,).
        """
        places = max(1, int((wanted * torch.arange(1, wanted.shape[1] + 1, device=wanted.device)).amax()))
        wanted, boxes = wanted[:, :places], boxes[:, :places]
        image, place = wanted.nonzero(as_tuple=True)
        if len(image) == 0:
            image = place = torch.zeros(1, dtype=torch.int64, device=boxes.device)
        features = self.mask_align(maps, boxes).to(maps[0].dtype)
        return features[image * places + place], image, place


def _one_or_all(heads: Sequence[nn.Module]) -> nn.Module:
    return heads[0] if len(heads) == 1 else nn.ModuleList(heads)


def _listed(heads: nn.Module | None) -> list[nn.Module]:
    if heads is None:
        return []
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def _stacked(images: Sequence[ClassDetections]) -> ClassDetections:
    return ClassDetections(*(torch.stack(parts) for parts in zip(*images, strict=True)))
