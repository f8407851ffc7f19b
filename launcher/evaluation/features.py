"""Frozen pooled features of a split on all ranks, in an order that no layout changes.

Legend: n samples, C channels of the last stage, B images a batch, W ranks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_shards.errors import DataError
from launcher.errors import RankError
from launcher.evaluation.context import EvalContext
from launcher.evaluation.loop import eval_stream
from launcher.evaluation.modes import need_groups, standard_modes
from launcher.tasks.image_data import pooled_features
from parallel.ranks.collectives import sum_over
from parallel.ranks.host import send
from swin_moe.random.keyed import sample_keys


class LabelledFeatures(NamedTuple):
    """What the head would see of n samples, and their labels."""

    values: Tensor  # (n, C) fp32
    labels: Tensor  # (n,) int64


@torch.no_grad()
def split_features(
    context: EvalContext,
    place: str,
    samples: np.ndarray | None = None,
    *,
    mapped_to: Sequence[str] | None = None,
) -> LabelledFeatures:
    """The features of a split's samples, without augmentation; every rank calls it and gets all of them.

    Those of a video are the mean of those of its views, which `video.clips` and `video.crops` choose.

    Each rank computes its share and the sum over the ranks joins them: zeros but for one rank, so exact.

    Args:
        context: the checkpoint.
        place: of the split.
        samples: (n,) int64 those to take, in this order; None is all of them.
        mapped_to: class names to which labels are mapped; None where they stay.

    Raises:
        RankError: this rank's data cannot be read.
    """
    config, device, modes = context.config, context.device, standard_modes(context.config.model.moe)[:1]
    backbone = context.backbone
    with eval_stream(
        config, context.mesh, grouped=need_groups(modes), place=place, classes=mapped_to, samples=samples
    ) as stream:
        # by their places in the stream, which routing groups may have shuffled
        values = torch.zeros(stream.num_samples, backbone.channels[-1], device=device)
        try:
            for i, batch in enumerate(stream):
                keys = send(sample_keys(0, batch.positions), device)
                features = pooled_features(backbone, context.views(batch), keys, modes[0].call)
                first = (i * stream.dp_size + stream.dp_rank) * stream.batch_size
                count = min(len(features), max(0, stream.num_samples - first))
                values[first : first + count] = features[:count]
                context.heartbeat()
            labels = torch.from_numpy(stream.labels()[stream.samples]).to(device)
        except DataError as error:
            raise RankError(f"rank {stream.dp_rank}, features of {place}: {error}") from error
        values = sum_over(values)
        if stream.in_order or samples is not None and not need_groups(modes):
            return LabelledFeatures(values, labels)
        wanted = np.arange(stream.num_samples) if samples is None else samples
        back = torch.from_numpy(places(stream.samples, wanted)).to(device)
        return LabelledFeatures(values[back], labels[back])


def places(given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of `wanted` (n,) stands in `given` (n,), a permutation of it: (n,) int64."""
    order = np.argsort(given, kind="stable")
    return order[np.searchsorted(given, wanted, sorter=order)]
