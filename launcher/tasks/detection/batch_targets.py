"""The objects of a batch as the detector takes them: padded to the image with most.

Legend: B images, G objects of the image with most of them.
"""

import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from parallel.ranks.host import send
from swin_moe.detection.targets import Targets


def batch_targets(batch: Batch, device: torch.device) -> Targets:
    """The boxes, labels and masks of the images of a batch, on the device."""
    offsets = batch["boxes_offsets"]  # (B + 1,)
    counts = offsets.diff()  # (B,)
    place = torch.arange(max(1, int(counts.max())))  # (G,)
    there = place < counts[:, None]  # (B, G)
    runs = torch.cat([torch.zeros(1, dtype=torch.int64), batch["mask_lengths"].long().cumsum(0)])
    first = offsets[:-1, None] + torch.cat([place, place[-1:] + 1]).minimum(counts[:, None])  # (B, G + 1)
    targets = Targets(
        boxes=_padded(batch["boxes"], there, 0.0),
        labels=_padded(batch["labels"].long(), there, -1),
        mask_runs=batch["mask_runs"],
        mask_offsets=runs[first],
    )
    return Targets(*(send(tensor, device) for tensor in targets))


def _padded(rows: Tensor, there: Tensor, fill: float) -> Tensor:
    """The rows (N, ...) of all objects at the places (B, G) where there is one, and `fill` elsewhere."""
    padded = rows.new_full((*there.shape, *rows.shape[1:]), fill)
    padded[there] = rows
    return padded
