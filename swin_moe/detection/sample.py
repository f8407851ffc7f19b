"""Which boxes of an image a loss is taken over: a fixed number, drawn without replacement.

In the place of a random permutation each box has a hash of (key of the image, number of the box), and the
boxes of the smallest hashes are taken. So the draw is a function of the image alone, on any rank and device
and beside any other image. The hashes of an image are all different: `fold_in` is a bijection.

Legend: N boxes of an image, k the number of samples.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from swin_moe.random.keyed import fold_in

LAST = 2**63 - 1  # sorts after every hash


class Sample(NamedTuple):
    """The boxes that were drawn: first all positives, then all negatives, each in increasing order."""

    indices: Tensor  # (..., k) int64, numbers of boxes; 0 for what is missing
    weight: Tensor  # (..., k) fp32: 1, or 0 for what is missing, which comes last


@torch.no_grad()
def sample(assigned: Tensor, valid: Tensor | None, keys: Tensor, count: int, max_positive: int) -> Sample:
    """Draw boxes uniformly: positives up to a number, and negatives for the rest.

    Fewer boxes than `count` leave places with weight 0. Positives stand in the first `max_positive` places.

    Args:
        assigned: (..., N) int64 of `assign`: at least 0 for positives, -1 for negatives; others are not
            drawn.
        valid: (..., N) bool; other boxes are not drawn. None: all may be.
        keys: (...) int64 of the images, already of this place in the model.
        count: k.
        max_positive: positives at most.

    Returns:
        (..., k) each.
    """
    number = assigned.shape[-1]
    hashes = fold_in(keys[..., None], torch.arange(number, device=assigned.device))
    positive, negative = assigned >= 0, assigned == -1
    if valid is not None:
        positive, negative = positive & valid, negative & valid
    first, is_positive = _smallest(hashes, positive, min(max_positive, count))
    second, is_negative = _smallest(hashes, negative, count)
    left = count - is_positive.sum(-1, keepdim=True)
    is_negative = is_negative & (torch.arange(is_negative.shape[-1], device=left.device) < left)
    drawn, indices = torch.cat([is_positive, is_negative], -1), torch.cat([first, second], -1)
    return _in_order(indices, drawn, first.shape[-1], number, count)


def _smallest(hashes: Tensor, candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The candidates of smallest hash: numbers in the order of hashes, and which are candidates at all."""
    count = min(count, hashes.shape[-1])
    indices = hashes.masked_fill(~candidates, LAST).topk(count, dim=-1, largest=False, sorted=True).indices
    return indices, candidates.gather(-1, indices)


def _in_order(indices: Tensor, drawn: Tensor, positives: int, number: int, count: int) -> Sample:
    """Drawn positives by number, then drawn negatives by number, then places without a sample."""
    kind = torch.arange(indices.shape[-1], device=indices.device) >= positives
    place = torch.where(drawn, indices + kind * number, 2 * number).sort(dim=-1).values
    missing = place.new_full((*place.shape[:-1], max(0, count - place.shape[-1])), 2 * number)
    place = torch.cat([place, missing], dim=-1)[..., :count]
    is_drawn = place < 2 * number
    return Sample(torch.where(is_drawn, place % max(number, 1), 0), is_drawn.float())
