"""Sizes and work of the published detectors, to the unit where they are known."""

import pytest
import torch
from torch import nn

from swin_moe.backbone.flops import Cost, construct_on_meta, count_parameters
from swin_moe.config import ModelConfig
from swin_moe.detection.box_head import BoxHead
from swin_moe.detection.config import DetectorConfig, DetectorKind
from swin_moe.detection.cost import detector_cost
from swin_moe.detection.detector import Detector
from swin_moe.detection.mask_head import MaskHead
from swin_moe.heads.conv_blocks import NormOptions

TINY = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
SMALL = {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
BASE = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}

PUBLISHED = [  # parameters, and FLOPs of an image of 1280 x 800 pixels in units of 10^9
    ("mask_rcnn", TINY, 47_794_602, 266.6),
    ("mask_rcnn", SMALL, 69_112_506, 358.6),
    ("cascade_mask_rcnn", TINY, 85_629_804, 744.8),
    ("cascade_mask_rcnn", SMALL, 106_947_708, 836.8),
    ("cascade_mask_rcnn", BASE, 144_977_002, 981.3),
]


def of(options: dict[str, object]) -> ModelConfig:
    return ModelConfig(num_classes=80, window_size=7, window_padding="visible", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "options", "parameters", "gflops"), PUBLISHED)
def test_published_sizes(
    kind: DetectorKind, options: dict[str, object], parameters: int, gflops: float
) -> None:
    cost = detector_cost(of(options), DetectorConfig(kind=kind))
    assert cost == Cost(parameters, parameters, cost.flops)
    assert round(cost.flops / 1e9, 1) == gflops


def test_parts() -> None:
    """The figures of parts; the backbone is that with four norms."""
    with torch.device("meta"):
        heads: dict[nn.Module, int] = {
            BoxHead(256, 1024, 80): 14_306_705,
            MaskHead(256, 256, 80): 2_643_280,
            BoxHead(256, 1024, 80, convs=4, fcs=1, norm=NormOptions(16)): 15_618_449,
        }
    for head, parameters in heads.items():
        assert count_parameters(head) == parameters
    detector = construct_on_meta(lambda model, experts: Detector(model, DetectorConfig(), experts), of(TINY))
    assert count_parameters(detector.encoder) + count_parameters(detector.stage_norms) == 27_520_698
    assert count_parameters(detector.neck) == 2_729_984
    assert count_parameters(detector.rpn_head) == 593_935
