"""Images beside their labels and the prediction, in colours.

Legend: H, W height and width of an image in pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from launcher.tasks.class_colours import class_colour
from swin_moe.heads.upernet_config import IGNORED

LONGEST = 512  # pixels of a side of what is shown
GAP = 4  # pixels between two of a row


def palette() -> Tensor:
    """The colour of each label, black for pixels without one: (256, 3) in 0 to 1."""
    colours = [class_colour(label) for label in range(IGNORED + 1)]
    colours[IGNORED] = (0.0, 0.0, 0.0)
    return torch.tensor(colours)


def side_by_side(image: Tensor, labels: Tensor, found: Tensor) -> Tensor:
    """An image, its labels and the prediction from left to right: (3, height, width) in 0 to 1.

    Args:
        image: (3, h, w) in 0 to 1, of any size.
        labels: (H, W) uint8.
        found: (H, W) uint8.
    """
    height, width = labels.shape
    step = -(-max(height, width) // LONGEST)  # only every so many pixels are shown
    colours = palette().to(image.device)
    pixels = F.interpolate(image[None], (height, width), mode="bilinear", align_corners=False)[0]
    shown = [pixels, *(colours[one.long()].permute(2, 0, 1) for one in (labels.to(image.device), found))]
    return torch.cat([F.pad(one[:, ::step, ::step], (0, GAP, 0, GAP)) for one in shown], dim=2)
