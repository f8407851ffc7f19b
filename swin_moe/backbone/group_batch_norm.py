"""Batch normalization (Ioffe & Szegedy 2015) over fixed groups of consecutive images of the global batch.

As with routing groups (moe/dispatch.py), a group is a function of the sample order alone: statistics depend
neither on the number of ranks nor on the micro-batch. Running statistics are fp32. They move once an
optimizer step, by the average of the statistics of all groups of the step:

    norm = GroupBatchNorm2d(64, group_size=32)                        in a model
    span_ranks(model, mesh, micro_batch_size=8, grad_accum_steps=1)   before training
    y = norm(x)                                                       once or more a micro-batch
    update_running_statistics(model, skipped=engine.skipped)          after each step

Groups inside a micro-batch give the same bits on every layout. A group that spans ranks is summed over them:
the result is that of torch's SyncBatchNorm if the group is the global batch.

Legend: B images of a forward pass, K rows of an image (one, or one for each region of it), C channels, N rows
of a group, G groups of a forward pass, P forward passes of a rank and step, R ranks of a group.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.ranks.collectives import all_gather_single, differentiable_sum_over
from parallel.ranks.mesh import Mesh, neighbour_group
from swin_moe.errors import require

STATISTICS = ("running_mean", "running_var")


def group_ranks(group_size: int, *, micro_batch_size: int, dp_size: int, grad_accum_steps: int) -> int:
    """The number of consecutive ranks that hold one group.

    Raises:
        ModelError: the micro-batches divide a group, or groups do not fill the micro-batches.
    """
    sizes = f"{micro_batch_size} images of train.micro_batch_size"
    if micro_batch_size % group_size == 0:
        return 1
    require(
        group_size % micro_batch_size == 0,
        f"a batch norm over groups of {group_size} images: group_size must divide {sizes}, or be a multiple",
    )
    require(
        grad_accum_steps == 1,
        f"a batch norm over groups of {group_size} images needs them in one micro-batch of all ranks: a rank "
        f"would see its {sizes} x {grad_accum_steps} micro-batches a step one after the other; set "
        f"train.micro_batch_size to a multiple of {group_size}, or to train.global_batch_size / ranks",
    )
    ranks = group_size // micro_batch_size
    require(
        dp_size % ranks == 0,
        f"a batch norm over groups of {group_size} images: group_size must divide the global batch "
        f"({sizes} x {dp_size} ranks)",
    )
    return ranks


def span_ranks(module: nn.Module, mesh: Mesh, *, micro_batch_size: int, grad_accum_steps: int) -> None:
    """Give every group batch norm of a model the ranks that hold a group; every rank calls it together.

    A model that does not train needs no ranks.

    Raises:
        ModelError: of `group_ranks`.
    """
    groups: dict[int, dist.ProcessGroup | None] = {}
    for norm in module.modules():
        if isinstance(norm, _GroupBatchNorm):
            ranks = group_ranks(
                norm.group_size,
                micro_batch_size=micro_batch_size,
                dp_size=mesh.dims.world_size,
                grad_accum_steps=grad_accum_steps,
            )
            if ranks not in groups:
                groups[ranks] = neighbour_group(mesh, ranks)
            norm.group = groups[ranks]


def in_one_group(module: nn.Module, images: int) -> None:
    """Make so many images one group of all batch norms, for a pass on tensors without values."""
    for norm in module.modules():
        if isinstance(norm, _GroupBatchNorm):
            norm.group_size = images


class _GroupBatchNorm(nn.Module):
    """Common to all numbers of dims; names and defaults of the parameters and buffers are torch's.

    In training each group of images is normalised by its own statistics. In evaluation, and in training if
    frozen, the running statistics serve; without them (`track_running_stats=False`) the groups' always do.
    Padded pixels count as all others do, as in torch. A training batch has no padded images.

    Args:
        num_features: C.
        group_size: images of a group.
        group: the R consecutive ranks that hold one group (`span_ranks`); None is this rank alone.
        eps: added to the variance.
        momentum: share of a step's statistics in the running ones.
        affine: whether to scale and shift.
        track_running_stats: whether to keep running statistics.
        frozen: whether to use the running statistics in training too and not to move them.
    """

    dims: tuple[int, ...]  # that an input may have

    def __init__(
        self,
        num_features: int,
        group_size: int,
        *,
        group: dist.ProcessGroup | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        require(group_size >= 1, f"group_size ({group_size}) must be at least 1")
        require(track_running_stats or not frozen, "a frozen batch norm needs track_running_stats")
        self.num_features, self.group_size, self.group, self.frozen = num_features, group_size, group, frozen
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        mean, var = torch.zeros(num_features), torch.ones(num_features)
        self.register_buffer("running_mean", mean.float() if track_running_stats else None)
        self.register_buffer("running_var", var.float() if track_running_stats else None)
        self._pending: list[Tensor] = []  # of this step: (G, 2, C) of each forward pass, mean and variance

    def reset_buffers(self) -> None:
        """Initialise the running statistics, after a construction on the meta device."""
        if self.tracks:
            self.get_buffer("running_mean").zero_()
            self.get_buffer("running_var").fill_(1.0)

    @property
    def ranks(self) -> int:
        """R."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def tracks(self) -> bool:
        """Whether there are running statistics."""
        return self.running_mean is not None

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Normalise (B, C, ...) over complete groups; the result has the dtype of `x`.

        An image may also have several rows, such as regions of it: then x is (B * K, C, ...). Rows that only
        fill places have the weight 0. They are normalised by the statistics of the others. A group without
        rows of weight 1, or with one value a channel, gives the bias and leaves the running statistics.

        Args:
            x: what to normalise.
            weight: (B, K) of the rows of each image, 1 or 0; None: an image is one row.

        Raises:
            ModelError: the images do not fill groups, or a group has one value a channel.
        """
        require(
            x.dim() in self.dims and x.shape[1] == self.num_features,
            f"{type(self).__name__} takes {' or '.join(map(str, self.dims))} dims and {self.num_features} "
            f"channels, not {list(x.shape)}",
        )
        if self.tracks and (self.frozen or not self.training):
            mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
            scale, shift = self._affine(1)
            return F.batch_norm(x, mean, var, scale, shift, training=False, eps=self.eps)
        if weight is None:
            y, statistics = self._over_ranks(x) if self.ranks > 1 else self._on_this_rank(x)
        else:
            y, statistics = self._weighted(x, weight)
        if self.tracks:
            self._pending.append(statistics)
        return y

    def extra_repr(self) -> str:
        """As torch's batch norms print theirs."""
        return f"{self.num_features}, group_size={self.group_size}, ranks={self.ranks}, frozen={self.frozen}"

    def _on_this_rank(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Complete groups: each is a set of channels of its own of torch's kernel."""
        groups, size = self._groups(len(x)), self.group_size
        self._require_several(size * x[0, 0].numel())
        split = x.unflatten(0, (groups, size)).transpose(0, 1).flatten(1, 2)  # (B / G, G C, ...)
        statistics = x.new_zeros((2, groups * self.num_features), dtype=torch.float32)
        # with a momentum of 1 the kernel's running statistics are the groups' own
        mean, var = statistics
        weight, bias = self._affine(groups)
        y = F.batch_norm(split, mean, var, weight, bias, training=True, momentum=1.0, eps=self.eps)
        y = y.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)
        return y, statistics.unflatten(1, (groups, -1)).transpose(0, 1)

    def _over_ranks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One group that spans ranks."""
        self._require_part(len(x))
        self._require_several(len(x) * self.ranks * x[0, 0].numel())
        y, statistics = self._one_group(x, x.new_ones(len(x), dtype=torch.float32))
        return y, statistics[None]

    def _weighted(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B * K, C, ...) with weights (B, K), group by group: none changes another's bits."""
        if self.ranks > 1:
            self._require_part(len(weight))
        groups = 1 if self.ranks > 1 else self._groups(len(weight))
        pairs = zip(x.chunk(groups), weight.flatten().chunk(groups), strict=True)
        parts = [self._one_group(*pair) for pair in pairs]
        return torch.cat([y for y, _ in parts]), torch.stack([statistics for _, statistics in parts])

    def _one_group(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N, C, ...) of a group, whose sums are those of all its ranks, and its statistics (2, C)."""
        values, weight = x.float().flatten(2) if x.dim() > 2 else x.float()[..., None], weight.float()
        count = weight.sum()[None] * values.shape[2]
        sums = self._sum(torch.cat([weight @ values.sum(2), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total.clamp_min(1)
        centred = values - mean[:, None]
        squares = self._sum(weight @ centred.square().sum(2))
        scale = torch.rsqrt(squares / total.clamp_min(1) + self.eps) * (total > 1)
        own, shift = self._affine(1)
        y = centred * (scale if own is None else scale * own)[:, None]
        y = y if shift is None else y + shift[:, None]
        statistics = torch.stack([mean, squares / (total - 1).clamp_min(1)]).detach()
        if self.tracks:
            running = torch.stack([self.get_buffer(name) for name in STATISTICS])
            statistics = torch.where(total > 1, statistics, running)
        return y.view(x.shape).to(x.dtype), statistics

    def _sum(self, values: Tensor) -> Tensor:
        return values if self.ranks == 1 else differentiable_sum_over(values, self.group)

    def _groups(self, images: int) -> int:
        """G of images that fill groups on this rank."""
        size = self.group_size
        require(
            images % size == 0,
            f"a batch norm over groups of {size} images: group_size must divide the images of a forward pass "
            f"({images}); a group that spans ranks needs their process group, and one micro-batch a step",
        )
        return images // size

    def _require_part(self, images: int) -> None:
        size, ranks = self.group_size, self.ranks
        require(
            images * ranks == size,
            f"a batch norm over groups of {size} images that span {ranks} ranks: a forward pass of a rank "
            f"must have {size} / {ranks} images, not {images}",
        )

    def _affine(self, groups: int) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias of every channel of every group in fp32: (G C,)."""
        if self.weight is None or self.bias is None:
            return None, None
        return self.weight.float().repeat(groups), self.bias.float().repeat(groups)

    def _require_several(self, values: int) -> None:
        require(values > 1, f"{type(self).__name__}: a group has one value a channel, which has no variance")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the running statistics with the module, and keep them in fp32 whatever it is cast to."""
        before = {name: self._buffers[name] for name in STATISTICS}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            now = self._buffers[name]
            if buffer is not None and now is not None and now.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(now.device)
        return self


class GroupBatchNorm1d(_GroupBatchNorm):
    """Batch norm of (B, C) or (B, C, L) over fixed groups of images; see `_GroupBatchNorm` for arguments."""

    dims = (2, 3)


class GroupBatchNorm2d(_GroupBatchNorm):
    """Batch norm of (B, C, H, W) over fixed groups of images; see `_GroupBatchNorm` for arguments."""

    dims = (4,)


@torch.no_grad()
def update_running_statistics(
    module: nn.Module, group: dist.ProcessGroup | None = None, *, skipped: bool = False
) -> None:
    """Move the running statistics of all group batch norms of a model, once after each optimizer step.

    running = (1 - momentum) * running + momentum * average over the groups of the step; the variance is the
    unbiased one, as torch's. The average is computed in fp64 in the order of the global batch, the same bits
    on each rank. A forward pass that is recomputed counts again, which leaves the average as it is.

    Args:
        module: in which every rank made the same forward passes.
        group: of all data-parallel ranks; None is the world, or this process alone.
        skipped: whether the step was skipped; then the statistics stay.
    """
    norms = [m for m in module.modules() if isinstance(m, _GroupBatchNorm) and m._pending]
    pending = [torch.cat(norm._pending) for norm in norms]  # (P G, 2, C) each
    for norm in norms:
        norm._pending = []
    if skipped or not norms:
        return
    flat = torch.cat([statistics.flatten() for statistics in pending])
    ranks = dist.get_world_size(group) if dist.is_initialized() else 1
    by_rank = flat.new_empty(ranks * len(flat))
    if ranks > 1:
        all_gather_single(by_rank, flat, group)
    else:
        by_rank = flat
    columns = by_rank.view(ranks, -1).split([statistics.numel() for statistics in pending], dim=1)
    for norm, statistics, column in zip(norms, pending, columns, strict=True):
        first_ranks = column[:: norm.ranks].reshape(-1, *statistics.shape)  # one rank of each group
        mean, var = _average(first_ranks)
        norm.get_buffer("running_mean").lerp_(mean, norm.momentum)
        norm.get_buffer("running_var").lerp_(var, norm.momentum)


def _average(statistics: Tensor) -> Sequence[Tensor]:
    """Mean and variance (2, C) in fp32 of the groups (ranks, P G, 2, C) of a step."""
    return statistics.flatten(0, 1).double().mean(0).float().unbind(0)
