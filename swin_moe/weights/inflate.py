"""Weights of images for a model of clips (Video Swin, Liu et al. 2022, arXiv:2106.13230, section 3.3).

The model of clips starts as the model of images. For a clip of equal frames it has the map of the image model
at every time, and so its logits, if no window sees padding in time. The patch embedding is then that of the
image. A token attends to as many equal copies of each token of its image window as there are times in its own
window. Their scores are equal too, and softmax divides among them what one of them had. With experts it holds
where each token is served whatever the others are: without a capacity, for routers that score tokens one by
one, and for the soft router.

Legend: a window of D x H x W tokens; R = (2H - 1) * (2W - 1) offsets, h heads; t frames of a patch, p its
side.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from swin_moe.config import ModelConfig
from swin_moe.weights.converted import PATCHES, ConvertedStateDict
from swin_moe.weights.errors import WeightsError

TABLE = "relative_position_bias_table"
NETWORK = "cpb_mlp.0.weight"  # of log-spaced offsets


def inflate(converted: ConvertedStateDict, config: ModelConfig) -> list[str]:
    """Give weights of images the time axis of a model of clips; others stay as they are.

    - The patch embedding (C, in_chans, p, p) is repeated over the t frames of a patch and divided by t.
    - A table (R, h), which has the height and the width of the model's windows, is repeated for each of the
      2D - 1 offsets in time.
    - A network of log-spaced offsets gets a coordinate of time with the weights 0: its bias is that of the
      image model at every time, exactly, and the column learns from there, as its gradient is not 0.

    Args:
        converted: the weights; changed in place.
        config: of the model.

    Returns:
        What was done.

    Raises:
        WeightsError: they are weights of clips, and the model is of images.
    """
    if PATCHES not in converted.tensors or (converted.axes == 2 and not config.frames):
        return []
    if converted.axes == 3:
        _check_clips(converted, config)
        return []
    patches = converted.tensors[PATCHES]
    if patches.dim() != 4:
        return []  # of another model, as the comparison of shapes will say
    converted.tensors[PATCHES] = _over_time(patches, config.patch_frames)
    offsets = 2 * config.stage_window(0)[0] - 1
    tables = _change(converted, TABLE, lambda table: table.repeat(offsets, 1))
    networks = _change(converted, NETWORK, _with_time)
    done = [f"the patch embedding over {config.patch_frames} frames"]
    done += [f"{tables} position bias tables over {offsets} offsets in time"] if tables else []
    done += [f"{networks} position bias networks by a coordinate of time with weights 0"] if networks else []
    return [f"inflated from images: {', '.join(done)}"]


def _check_clips(converted: ConvertedStateDict, config: ModelConfig) -> None:
    """Refuse weights of clips for images, and with patches of other frames."""
    frames = converted.tensors[PATCHES].shape[2]
    if not config.frames:
        raise WeightsError(
            f"these are weights of a model of clips (patches of {frames} frames), and this model is of "
            "images: set model.frames"
        )
    if frames != config.patch_frames:
        raise WeightsError(
            f"these weights have patches of {frames} frames: set model.patch_frames={frames} (got "
            f"{config.patch_frames})"
        )


def _over_time(patches: Tensor, frames: int) -> Tensor:
    """(C, in_chans, p, p) -> (C, in_chans, t, p, p), whose sum over t is the weights of an image."""
    return patches[:, :, None].expand(-1, -1, frames, -1, -1) / frames


def _with_time(weight: Tensor) -> Tensor:
    """(hidden, 2) -> (hidden, 3): time is the first coordinate."""
    return torch.cat([torch.zeros_like(weight[:, :1]), weight], dim=1)


def _change(converted: ConvertedStateDict, ending: str, change: Callable[[Tensor], Tensor]) -> int:
    """Change every tensor whose name ends so. Returns how many there are."""
    names = [name for name in converted.tensors if name.endswith(f"position_bias.{ending}")]
    for name in names:
        converted.tensors[name] = change(converted.tensors[name])
    return len(names)
