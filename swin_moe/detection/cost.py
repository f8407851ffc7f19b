"""What a detector costs, by the published convention (see backbone/flops.py).

Published FLOPs of detectors on Swin are multiply-adds of one image of 1280 x 800 pixels, with 1000 regions
through every box head and 100 through every mask head: 1000 is what the network proposes, and 100 detections
are kept. The encoder counts with its padded windows. RoIAlign, suppression and pasting are left out.
"""

from functools import partial

import torch

from swin_moe.backbone.flops import (
    Cost,
    construct_on_meta,
    count_active_parameters,
    count_parameters,
    count_products,
    images_on_meta,
    maps_on_meta,
)
from swin_moe.config import ModelConfig
from swin_moe.detection import box_head, mask_head
from swin_moe.detection.config import DetectorConfig
from swin_moe.detection.detector import Detector

SIDES = (800, 1280)  # height and width of the published image, in pixels


def detector_cost(model: ModelConfig, config: DetectorConfig, sides: tuple[int, int] = SIDES) -> Cost:
    """Count a model on the meta device: nothing is allocated and nothing computed.

    Args:
        model: the encoder.
        config: of the rest.
        sides: height and width of the image whose FLOPs are counted, in pixels.
    """
    detector = construct_on_meta(lambda encoder, experts: Detector(encoder, config, experts), model)
    parameters, active = count_parameters(detector), count_active_parameters(detector)
    return Cost(parameters, active, count_detector_flops(detector, sides))


def count_detector_flops(detector: Detector, sides: tuple[int, int]) -> int:
    """Multiply-adds of one image; the model is on the meta device and is used up."""
    encoder, config = detector.encoder, detector.config
    images, keys = images_on_meta(encoder.config, sides)
    parts = [count_products(encoder, lambda: encoder.forward_features(images, keys))]
    maps = maps_on_meta(encoder, sides)
    parts.append(count_products(detector.neck, lambda: detector.neck(maps)))
    levels = [torch.empty(1, config.channels, *x.shape[2:], device="meta") for x in maps]
    last = levels[-1].shape[2:]
    levels.append(torch.empty(1, config.channels, *(-(-side // 2) for side in last), device="meta"))
    parts.append(count_products(detector.rpn_head, lambda: detector.rpn_head(levels)))
    heads = (
        (detector.roi_head.box_heads, config.test_proposals, box_head.SIDE),
        (detector.roi_head.mask_heads, config.detections, mask_head.SIDE),
    )
    for modules, regions, side in heads:
        features = torch.empty(regions, config.channels, side, side, device="meta")
        parts += [count_products(head, partial(head, features)) for head in modules]
    return sum(sum(part.values()) for part in parts)
