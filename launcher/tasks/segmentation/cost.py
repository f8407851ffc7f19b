"""What the models of recipes cost, beside the published figures."""

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.segmentation.options import SegmentationOptions
from launcher.tasks.spec import CountedModel
from swin_moe.heads.upernet_cost import segmenter_cost

# Parameters and FLOPs as printed in the table of SwinTransformer/Swin-Transformer-Semantic-Segmentation
# (commit 87e6f90), whose FLOPs count elementwise work too, and in that of microsoft/Swin-Transformer for
# models of 640 pixels. Its 1841G is that of windows of 7 x 7 tokens; its 3230G fits no such model (2482G and
# 2580G with windows of 7 and 12).
PUBLISHED = {
    "upernet_swin_tiny_512": ("60M", "~945G"),
    "upernet_swin_small_512": ("81M", "~1038G"),
    "upernet_swin_base_512": ("121M", "~1188G"),
    "upernet_swin_base_640_22k": ("121M", ""),
    "upernet_swin_large_640_22k": ("234M", ""),
}


def counted(name: str, config: RunConfig) -> CountedModel:
    """The model of a recipe; its FLOPs are those of an image of `short_side` x `long_side` pixels."""
    options = options_of(config, SegmentationOptions)
    sides = options.short_side, options.long_side
    cost = segmenter_cost(config.model, options.head, sides)
    return CountedModel(sides, cost, PUBLISHED.get(name, ("", "")))
