"""What a segmentation model costs, by the published convention (see backbone/flops.py).

Published FLOPs are those of one image of 512 x 2048 pixels for models that are trained on crops of 512, and
of 640 x 2560 for those of 640. The encoder with its padded windows and the decode head count; the auxiliary
head does not run in evaluation. Published figures are 0.06 to 0.1 % higher, because their tool counts
elementwise work too. Resizing is left out here: its products are 3 % more for Swin-T.
"""

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
from swin_moe.heads.upernet import Segmenter
from swin_moe.heads.upernet_config import UPerNetConfig


def segmenter_cost(model: ModelConfig, config: UPerNetConfig, sides: tuple[int, int]) -> Cost:
    """Count a model on the meta device: nothing is allocated and nothing computed.

    Args:
        model: the encoder.
        config: of the heads.
        sides: height and width of the image whose FLOPs are counted, in pixels.
    """
    segmenter = construct_on_meta(lambda encoder, experts: Segmenter(encoder, config, experts), model)
    parameters, active = count_parameters(segmenter), count_active_parameters(segmenter)
    return Cost(parameters, active, count_segmenter_flops(segmenter, sides))


def count_segmenter_flops(segmenter: Segmenter, sides: tuple[int, int]) -> int:
    """Multiply-adds of one image; the model is on the meta device and is used up."""
    encoder, head = segmenter.encoder, segmenter.decode_head
    images, keys = images_on_meta(encoder.config, sides)
    in_encoder = count_products(encoder, lambda: encoder.forward_features(images, keys))
    maps = maps_on_meta(encoder, sides)
    in_head = count_products(head, lambda: head(maps, keys))
    return sum(in_encoder.values()) + in_head["convolution"]
