"""The classes of videos, from several views of each: clips at several times, each cut in several places.

Legend: B videos, V views of each, n views of a pass, D frames of h x w pixels, K classes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from swin_moe.backbone.model import ModelOutput
from swin_moe.moe.layer import MoEStats

Call = Callable[[Tensor, Tensor], ModelOutput]  # of the model: clips (B, D, 3, h, w) uint8 and keys (B,)


class VideoPrediction(NamedTuple):
    """What the model says of each video and of each of its views."""

    # (B, K) fp32: logarithms of the mean probabilities of the views, which a softmax gives back
    logits: Tensor
    views: Tensor  # (B, V, K) fp32: the logits of each view
    moe: dict[str, MoEStats]  # over all views


def predict_views(call: Call, clips: Tensor, keys: Tensor, at_once: int) -> VideoPrediction:
    """The prediction for videos.

    A pass has the same n views of all videos, view after view, so that the clips of a routing group are
    those of consecutive videos whatever n is. Every rank makes as many passes.

    Args:
        call: the model.
        clips: (B, V, D, 3, h, w).
        keys: (B,).
        at_once: n, the views of each video in a pass; 0 is all.
    """
    videos, views = clips.shape[:2]
    logits: list[Tensor] = []
    moe: list[dict[str, MoEStats]] = []
    for some in clips.split(at_once or views, dim=1):
        count = some.shape[1]
        output = call(some.transpose(0, 1).flatten(0, 1), keys.repeat(count))
        logits.append(output.logits.float().unflatten(0, (count, videos)))
        moe.append({name: one.of_views(videos) for name, one in output.moe.items()})
    by_view = torch.cat(logits).transpose(0, 1)
    joined = {name: MoEStats.of_passes([one[name] for one in moe]) for name in moe[0]}
    return VideoPrediction(mean_of_views(by_view), by_view, joined)


def mean_of_views(logits: Tensor) -> Tensor:
    """Logarithms of the mean over views of the classes' probabilities: (B, V, K) -> (B, K)."""
    return logits.log_softmax(2).logsumexp(1) - math.log(logits.shape[1])
