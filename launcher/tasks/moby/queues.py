"""The queues of keys of earlier samples, one for each view, alike on all ranks and on every layout.

    queues = KeyQueues(4096, 256, views=2, seed=0, device=device)
    queues.keep(keys, positions)          after the forward pass of each micro-batch
    queues.end_step(skipped=False)        after each optimizer step; every rank calls it together

The keys of a step enter after it, those of all ranks and micro-batches in the order of the positions of their
samples in the stream. So a step's own keys are never among its negatives, and neither ranks nor accumulation
change what is in the queues. A skipped step leaves them as they are.

Legend: V views, K keys of a queue, B samples of a micro-batch, N samples of this rank in a step, R ranks, D
channels of a key.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from parallel.ranks.collectives import all_gather_single
from parallel.zero.persistent_state import PersistentState
from swin_moe.random.keyed import fold_in, normal, sample_keys

QUEUE_SITE = -2  # of the initial keys; the sites of a model count from 0


class KeyQueues:
    """V queues of K unit keys each, at first drawn at random by the seed.

    Args:
        size: K.
        dim: D.
        views: V.
        seed: of the run.
        device: of the rank.
    """

    def __init__(self, size: int, dim: int, *, views: int, seed: int, device: torch.device) -> None:
        self.state = PersistentState(
            {
                "queues": initial_keys(size, dim, views, seed).to(device),
                # keys that each queue has got so far: the next one takes the row of this number modulo K
                "enqueued": torch.zeros((), dtype=torch.int64, device=device),
            }
        )
        self._kept: list[tuple[Tensor, Tensor]] = []  # (B, V, D) and (B,) of each micro-batch of the step

    @property
    def keys(self) -> Tensor:
        """What the queries of a step are contrasted with: (V, K, D) fp32."""
        return self.state["queues"]

    def age(self, global_batch: int) -> Tensor:
        """Steps since the oldest key was computed, those that were skipped not counted: scalar fp32."""
        filled = self.state["enqueued"].clamp_max(self.keys.shape[1])
        return filled.float() / global_batch

    def keep(self, keys: Tensor, positions: Tensor) -> None:
        """Keep the keys (V, B, D) of a micro-batch whose samples have these positions (B,) in the stream."""
        self._kept.append((keys.detach().float().transpose(0, 1), positions))

    def end_step(self, *, skipped: bool) -> None:
        """Put in what was kept, of all ranks; nothing of a skipped step."""
        kept, self._kept = self._kept, []
        if skipped:
            return
        keys, positions = (torch.cat(parts) for parts in zip(*kept, strict=True))
        keys, positions = _of_all_ranks(keys), _of_all_ranks(positions)
        rows = torch.arange(len(keys), device=keys.device).add_(self.state["enqueued"])
        in_order = keys[positions.argsort()].transpose(0, 1)  # (V, R N, D)
        self.keys.index_copy_(1, rows.remainder_(self.keys.shape[1]), in_order)
        self.state["enqueued"].add_(len(keys))


def initial_keys(size: int, dim: int, views: int, seed: int) -> Tensor:
    """Random directions: (V, K, D) fp32, computed on the host, so that all devices have the same."""
    places = fold_in(sample_keys(seed, torch.arange(views * size)), QUEUE_SITE)
    return F.normalize(normal(places, dim), dim=1).view(views, size, dim)


def _of_all_ranks(part: Tensor) -> Tensor:
    """The rows of every rank, in the order of the ranks: (N, ...) -> (R N, ...)."""
    if not dist.is_initialized() or (ranks := dist.get_world_size()) == 1:
        return part
    whole = part.new_empty(ranks * len(part), *part.shape[1:])
    all_gather_single(whole, part.contiguous())
    return whole
