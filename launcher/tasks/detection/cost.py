"""What the models of recipes cost, beside the published figures."""

from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.tasks.detection.options import DetectionOptions
from launcher.tasks.spec import CountedModel
from swin_moe.detection.cost import SIDES, detector_cost

# Parameters and FLOPs as printed in the table of SwinTransformer/Swin-Transformer-Object-Detection (commit
# c7b2011): multiply-adds of an image of 1280 x 800 pixels. 838G and 982G are 0.1 % more than we count.
PUBLISHED = {
    "mask_rcnn_swin_tiny_1x": ("48M", "267G"),
    "mask_rcnn_swin_tiny_3x": ("48M", "267G"),
    "mask_rcnn_swin_small_3x": ("69M", "359G"),
    "cascade_mask_rcnn_swin_tiny_1x": ("86M", "745G"),
    "cascade_mask_rcnn_swin_tiny_3x": ("86M", "745G"),
    "cascade_mask_rcnn_swin_small_3x": ("107M", "~838G"),
    "cascade_mask_rcnn_swin_base_3x": ("145M", "~982G"),
}


def counted(name: str, config: RunConfig) -> CountedModel:
    """The model of a recipe; its FLOPs are those of an image of 800 x 1280 pixels."""
    head = options_of(config, DetectionOptions).head
    return CountedModel(SIDES, detector_cost(config.model, head), PUBLISHED.get(name, ("", "")))
