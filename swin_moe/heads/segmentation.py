"""The loss of semantic segmentation.

Legend: B images of h x w pixels, H x W logits of an image, K classes.
"""

import torch.nn.functional as F
from torch import Tensor

from swin_moe.heads.resize import resize
from swin_moe.heads.upernet_config import IGNORED, LossOver
from swin_moe.moe.routers.base import to_fp32


def segmentation_loss(logits: Tensor, labels: Tensor, loss_over: LossOver = "all") -> Tensor:
    """Cross-entropy of the labelled pixels, in fp32 at the size of the labels; a mean over the images.

    The losses of an image's pixels are summed and divided by

    - `all`: h * w, ignored pixels counted, as in the published models (mmsegmentation issues 578 and 886).
      Where half of an image is ignored, its loss is half of the mean over the other half.
    - `valid`: the number of its pixels that have a label. An image without any counts with a loss of 0.

    Both are linear in the images, so that the loss of a global batch is the mean over its micro-batches and
    ranks, whatever their number. A mean over the labelled pixels of a whole batch would not be.

    Args:
        logits: (B, K, H, W), resized bilinearly to h x w.
        labels: (B, h, w) of 0 .. K - 1, or 255 for pixels without a label.
        loss_over: what the sum over an image's pixels is divided by.

    Returns:
        A scalar.
    """
    labels = labels.long()
    height, width = labels.shape[1:]
    pixels = resize(to_fp32(logits), (height, width)).permute(0, 2, 3, 1).flatten(0, 2)  # (B * h * w, K)
    # flat: the backward pass of torch's loss of images, nll_loss2d, adds with atomics on a GPU
    losses = F.cross_entropy(pixels, labels.flatten(), ignore_index=IGNORED, reduction="none")
    sums = losses.view(len(labels), -1).sum(1)
    if loss_over == "all":
        return sums.mean() / (height * width)
    return (sums / (labels != IGNORED).sum((1, 2)).clamp_min(1)).mean()
