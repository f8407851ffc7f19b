"""Batch norm over fixed groups of images that have several rows each, some of which only fill places."""

from typing import Any

import torch
from torch import Tensor, nn

from parallel.ranks.collectives import sum_over
from parallel.ranks.mesh import ParallelDims, build_mesh
from swin_moe.backbone.group_batch_norm import GroupBatchNorm2d, span_ranks, update_running_statistics
from swin_moe.heads.conv_blocks import ConvNormReLU, NormOptions
from tests.distributed import run_on_ranks
from tests.models import randn

CHANNELS, IMAGES, ROWS = 3, 4, 5
# of the rows of each image; the third has none, and the last a single one
WEIGHT = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]).float()
MOMENTUM, EPS = 0.1, 1e-5
Result = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def rows() -> Tensor:
    return randn(IMAGES * ROWS, CHANNELS, 2, 3, seed=1) + torch.arange(IMAGES * ROWS)[:, None, None, None]


def filled(norm: nn.Module) -> Any:
    """Weights and running statistics that matter."""
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * randn(CHANNELS, seed=8))
        norm.bias.copy_(randn(CHANNELS, seed=9))
        norm.running_mean.copy_(randn(CHANNELS, seed=10))
        norm.running_var.copy_(randn(CHANNELS, seed=11).exp())
    return norm


def loss(y: Tensor, weight: Tensor, first: int) -> Tensor:
    """A sum over the rows that are not missing."""
    factors = randn(IMAGES * ROWS, *y.shape[1:], seed=7)[first : first + len(y)]
    return (y.sin() * factors * weight.flatten()[:, None, None, None]).sum()


def found(group_size: int, images: slice, norm: Any) -> Result:
    """A step of a norm over some images."""
    part = slice(images.start * ROWS, images.stop * ROWS)
    x, weight = rows()[part].requires_grad_(), WEIGHT[images]
    y = norm(x, weight)
    loss(y, weight, part.start).backward()
    update_running_statistics(norm)
    assert x.grad is not None
    grads = (sum_over(p.grad) for p in (norm.weight, norm.bias))
    kept = y.detach() * weight.flatten()[:, None, None, None]
    return kept, x.grad, *grads, norm.running_mean, norm.running_var


def slow(group_size: int) -> Result:
    """Torch's own norm of the rows that are there, group by group."""
    norm, x = filled(nn.BatchNorm2d(CHANNELS)), rows().requires_grad_()
    start = norm.running_mean.clone(), norm.running_var.clone()
    outputs, moved = torch.zeros(len(x), *x.shape[1:]), []
    for first in range(0, IMAGES, group_size):
        taken = [
            image * ROWS + row
            for image in range(first, first + group_size)
            for row in range(ROWS)
            if WEIGHT[image, row]
        ]
        one = filled(nn.BatchNorm2d(CHANNELS))
        one.weight, one.bias = norm.weight, norm.bias
        if taken:
            outputs = outputs.index_put((torch.tensor(taken),), one(x[taken]))
        moved.append((one.running_mean, one.running_var))  # without rows: as they were
    loss(outputs, WEIGHT, 0).backward()
    assert start[0].shape == (CHANNELS,)
    assert x.grad is not None
    mean, var = (torch.stack(values).mean(0) for values in zip(*moved, strict=True))
    return outputs.detach(), x.grad, norm.weight.grad, norm.bias.grad, mean, var


def check(one: Result, other: Result) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_missing_rows_are_counted_out() -> None:
    for group_size in (4, 2, 1):
        norm = filled(GroupBatchNorm2d(CHANNELS, group_size))
        check(found(group_size, slice(0, IMAGES), norm), slow(group_size))


def test_a_group_without_rows_gives_the_bias() -> None:
    norm = filled(GroupBatchNorm2d(CHANNELS, 1))
    y = norm(rows(), WEIGHT)[2 * ROWS : 3 * ROWS]
    assert torch.equal(y, norm.bias.detach()[:, None, None].expand_as(y))


def test_missing_rows_are_normalised_by_the_others() -> None:
    norm = filled(GroupBatchNorm2d(CHANNELS, 4))
    x = rows()
    y = norm(x, WEIGHT)
    there = x[WEIGHT.flatten() > 0]
    var, mean = torch.var_mean(there, dim=(0, 2, 3), correction=0, keepdim=True)
    scale, shift = (p.detach()[:, None, None] for p in (norm.weight, norm.bias))
    torch.testing.assert_close(y, (x - mean) / (var + EPS).sqrt() * scale + shift, rtol=1e-4, atol=1e-5)


def test_rows_of_weight_one_are_images_of_a_larger_group() -> None:
    x = rows()
    plain = filled(GroupBatchNorm2d(CHANNELS, 2 * ROWS))(x)
    rowwise = filled(GroupBatchNorm2d(CHANNELS, 2))(x, torch.ones(IMAGES, ROWS))
    torch.testing.assert_close(rowwise, plain, rtol=1e-5, atol=1e-5)


def test_the_group_alone_gives_the_same_bits() -> None:
    norm, x = filled(GroupBatchNorm2d(CHANNELS, 2)), rows()
    together = norm(x, WEIGHT)
    assert torch.equal(norm(x[: 2 * ROWS], WEIGHT[:2]), together[: 2 * ROWS])


def test_evaluation_needs_no_weights() -> None:
    block = ConvNormReLU(CHANNELS, CHANNELS, 3, NormOptions(4)).eval()
    filled(block.bn)
    x = rows()
    assert torch.equal(block(x), block(x, WEIGHT))


def on_ranks() -> list[Result]:
    mesh, results = build_mesh(ParallelDims(world_size=2)), []
    for group_size in (4, 2):
        norm = GroupBatchNorm2d(CHANNELS, group_size)
        span_ranks(norm, mesh, micro_batch_size=2, grad_accum_steps=1)
        results.append(found(group_size, slice(2 * mesh.rank, 2 * mesh.rank + 2), filled(norm)))
    return results


def test_two_ranks_are_one() -> None:
    first, second = run_on_ranks(on_ranks, 2)
    for group_size, one, other in zip((4, 2), first, second, strict=True):
        outputs, grads = (torch.cat([one[i], other[i]]) for i in (0, 1))
        check((outputs, grads, *one[2:]), slow(group_size))
        assert torch.equal(one[4], other[4])
        assert torch.equal(one[5], other[5])
