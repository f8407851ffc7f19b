"""Batch norm over fixed groups of images: torch's own norm of each group, on any number of ranks.

SyncBatchNorm needs a GPU. It is defined as the BatchNorm of the images of all ranks, which is compared here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from parallel.checkpoint.commit import path_of
from parallel.checkpoint.load import load_weights
from parallel.ranks.collectives import sum_over
from parallel.ranks.mesh import LayoutError, Mesh, ParallelDims, build_mesh, neighbour_group
from parallel.zero.dtypes import DTYPES
from parallel.zero.engine import Engine
from parallel.zero.master_weights import MasterWeights
from parallel.zero.options import EngineOptions
from swin_moe.backbone.group_batch_norm import (
    GroupBatchNorm1d,
    GroupBatchNorm2d,
    group_ranks,
    span_ranks,
    update_running_statistics,
)
from swin_moe.errors import ModelError
from tests.distributed import run_on_ranks
from tests.models import randn, randomize
from tests.parallel.checkpoint.saving import save_checkpoint

CHANNELS, IMAGES = 3, 8
SHAPE = (IMAGES, CHANNELS, 4, 5)
STEPS = 2
MESH = Mesh(dims=ParallelDims(world_size=2))


class Result(NamedTuple):
    """What some steps of a norm did."""

    outputs: Tensor  # of the last step
    input_grads: Tensor
    weight_grad: Tensor  # summed over ranks
    bias_grad: Tensor
    running_mean: Tensor
    running_var: Tensor


def inputs(step: int) -> Tensor:
    """Channels far from each other, and images too."""
    x = randn(*SHAPE, seed=step)
    return 2 * x + torch.arange(CHANNELS)[:, None, None] + 0.3 * torch.arange(IMAGES)[:, None, None, None]


def randomized(norm: nn.Module) -> Any:
    """Weights that matter."""
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * randn(CHANNELS, seed=8))
        norm.bias.copy_(randn(CHANNELS, seed=9))
    return norm


def taken(norm: nn.Module, rows: slice, micro: int, after_step: Callable[[], None]) -> Result:
    """Steps over some images of each global batch, in micro-batches; the loss is a sum over the images."""
    for step in range(STEPS):
        norm.zero_grad()
        x, outputs = inputs(step)[rows].requires_grad_(), []
        for piece, weights in zip(x.split(micro), randn(*SHAPE, seed=7)[rows].split(micro), strict=True):
            outputs.append(norm(piece))
            (outputs[-1].sin() * weights).sum().backward()
        after_step()
    assert x.grad is not None
    return Result(
        torch.cat(outputs).detach(),
        x.grad,
        sum_over(norm.weight.grad),
        sum_over(norm.bias.grad),
        norm.running_mean,
        norm.running_var,
    )


def of_groups(group_size: int) -> Result:
    """The reference: torch's norm for each group, whose running statistics are those of one group each."""
    parts = []
    for first in range(0, IMAGES, group_size):
        rows = slice(first, first + group_size)
        parts.append(taken(randomized(nn.BatchNorm2d(CHANNELS)), rows, group_size, lambda: None))
    columns = list(zip(*parts, strict=True))
    return Result(
        torch.cat(columns[0]),
        torch.cat(columns[1]),
        torch.stack(columns[2]).sum(0),
        torch.stack(columns[3]).sum(0),
        torch.stack(columns[4]).mean(0),  # the running ones are linear in those of a step
        torch.stack(columns[5]).mean(0),
    )


def grouped(group_size: int, micro: int = IMAGES) -> Result:
    norm = randomized(GroupBatchNorm2d(CHANNELS, group_size))
    return taken(norm, slice(None), micro, lambda: update_running_statistics(norm))


def check(found: Result, expected: Result) -> None:
    for name, one, other in zip(Result._fields, found, expected, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.mark.parametrize("group_size", [8, 4, 2, 1])
def test_each_group_is_normalised_as_by_torch(group_size: int) -> None:
    found, expected = grouped(group_size), of_groups(group_size)
    check(found, expected)
    assert torch.equal(found.outputs, expected.outputs)


@pytest.mark.parametrize("micro", [4, 2])
def test_micro_batches_give_the_same_bits(micro: int) -> None:
    whole, cut = grouped(2), grouped(2, micro)
    check(cut, whole)  # the gradients of the weights are summed in another order
    for name in ("outputs", "input_grads", "running_mean", "running_var"):
        assert torch.equal(getattr(cut, name), getattr(whole, name)), name


def test_running_statistics_by_hand() -> None:
    norm = GroupBatchNorm1d(1, 2, momentum=0.5)
    norm(torch.tensor([[1.0], [3.0], [10.0], [16.0]]))  # means 2 and 13, unbiased variances 2 and 18
    assert (norm.running_mean.item(), norm.running_var.item()) == (0.0, 1.0)  # not before the step's end
    norm(torch.tensor([[0.0], [0.0]]))  # mean 0, variance 0
    update_running_statistics(norm)
    assert norm.running_mean.item() == 2.5  # 0.5 * 0 + 0.5 * 15 / 3
    assert norm.running_var.item() == pytest.approx(0.5 + 0.5 * 20 / 3)
    kept = norm.running_mean.clone(), norm.running_var.clone()
    norm(torch.tensor([[5.0], [7.0]]))
    update_running_statistics(norm, skipped=True)
    update_running_statistics(norm)  # nothing is left of the skipped step
    assert (norm.running_mean, norm.running_var) == kept


@pytest.mark.parametrize(("kind", "reference"), [("eval", {}), ("frozen", {"frozen": True})])
def test_running_statistics_serve_in_evaluation_and_if_frozen(kind: str, reference: dict[str, Any]) -> None:
    norm, torchs = (
        randomized(GroupBatchNorm2d(CHANNELS, 4, **reference)),
        randomized(nn.BatchNorm2d(CHANNELS)),
    )
    for each in (norm, torchs):
        each.running_mean.copy_(randn(CHANNELS, seed=3))
        each.running_var.copy_(randn(CHANNELS, seed=4).exp())
    torchs.eval()
    if kind == "eval":
        norm.eval()
    x = inputs(0)[:5]  # no complete group
    assert torch.equal(norm(x), torchs(x))
    update_running_statistics(norm)
    assert torch.equal(norm.running_mean, torchs.running_mean)
    assert norm.weight.requires_grad


def test_without_running_statistics_the_groups_serve_in_evaluation_too() -> None:
    norm = randomized(GroupBatchNorm2d(CHANNELS, 4, track_running_stats=False))
    assert torch.equal(norm.eval()(inputs(1)), grouped(4).outputs)
    assert not dict(norm.named_buffers())


def test_a_sequence_and_no_weights() -> None:
    x = randn(4, CHANNELS, 6)
    found = GroupBatchNorm1d(CHANNELS, 4, affine=False)(x)
    assert torch.equal(found, nn.BatchNorm1d(CHANNELS, affine=False)(x))
    assert list(GroupBatchNorm2d(CHANNELS, 4).state_dict()) == list(nn.BatchNorm2d(CHANNELS).state_dict())[:4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_fp32_in_half_precision(dtype: torch.dtype) -> None:
    norm, exact = (randomized(GroupBatchNorm2d(CHANNELS, 4)) for _ in range(2))
    exact.load_state_dict(norm.to(dtype).state_dict())  # the rounded weights
    x = inputs(0).to(dtype)
    y = norm(x)
    assert (y.dtype, norm.weight.dtype, norm.running_mean.dtype) == (dtype, dtype, torch.float32)
    torch.testing.assert_close(y, exact(x.float()).to(dtype))
    for each in (norm, exact):
        update_running_statistics(each)
    assert torch.equal(norm.running_mean, exact.running_mean)
    torch.testing.assert_close(norm.running_var, exact.running_var, rtol=1e-6, atol=0)


# --- ranks


def on_ranks(cases: list[int]) -> list[Result]:
    """Each rank's part of the global batch, for groups of several sizes."""
    found = []
    for group_size in cases:
        mesh = build_mesh(ParallelDims(world_size=torch.distributed.get_world_size()))
        world = mesh.dims.world_size
        mine = IMAGES // world
        norm = GroupBatchNorm2d(CHANNELS, group_size)
        span_ranks(norm, mesh, micro_batch_size=mine, grad_accum_steps=1)
        rows = slice(mesh.rank * mine, (mesh.rank + 1) * mine)
        found.append(taken(randomized(norm), rows, mine, lambda norm=norm: update_running_statistics(norm)))
    return found


def joined(by_rank: tuple[Result, ...]) -> Result:
    """The result of all ranks, which must agree in the bits of the running statistics."""
    first = by_rank[0]
    for other in by_rank[1:]:
        assert torch.equal(other.running_mean, first.running_mean)
        assert torch.equal(other.running_var, first.running_var)
    outputs, grads = (torch.cat([result[i] for result in by_rank]) for i in (0, 1))
    return first._replace(outputs=outputs, input_grads=grads)


@pytest.fixture(scope="module")
def two_ranks() -> dict[int, Result]:
    cases = [8, 4, 2]
    by_rank = run_on_ranks(on_ranks, 2, cases)
    return {size: joined(results) for size, results in zip(cases, zip(*by_rank, strict=True), strict=True)}


@pytest.mark.parametrize("group_size", [8, 4, 2])
def test_two_ranks_are_one(group_size: int, two_ranks: dict[int, Result]) -> None:
    check(two_ranks[group_size], of_groups(group_size))
    if group_size < 8:  # no group spans ranks
        whole = grouped(group_size)
        for name in ("outputs", "input_grads", "running_mean", "running_var"):
            assert torch.equal(getattr(two_ranks[group_size], name), getattr(whole, name)), name


@pytest.mark.slow
def test_four_ranks_are_one() -> None:
    by_rank = run_on_ranks(on_ranks, 4, [8, 4, 2, 1])
    for size, results in zip((8, 4, 2, 1), zip(*by_rank, strict=True), strict=True):
        check(joined(results), of_groups(size))


def uneven() -> tuple[Tensor, Tensor]:
    """Images of another size on each rank, of one group; the outputs and gradients as (values, C)."""
    mesh = build_mesh(ParallelDims(world_size=2))
    norm = randomized(GroupBatchNorm2d(CHANNELS, 4, group=neighbour_group(mesh, 2)))
    x = uneven_inputs()[mesh.rank].requires_grad_()
    y = norm(x)
    (y.square() * y).sum().backward()
    assert x.grad is not None
    return flat(y.detach()), flat(x.grad)


def uneven_inputs() -> list[Tensor]:
    return [randn(2, CHANNELS, 4, 5, seed=1), randn(2, CHANNELS, 2, 3, seed=2) + 3]


def flat(x: Tensor) -> Tensor:
    return x.transpose(1, -1).flatten(0, -2)


def test_ranks_may_hold_images_of_different_sizes() -> None:
    pairs = run_on_ranks(uneven, 2)
    values = torch.cat([flat(x) for x in uneven_inputs()]).requires_grad_()
    expected = randomized(nn.BatchNorm1d(CHANNELS))(values)
    (expected.square() * expected).sum().backward()
    torch.testing.assert_close(torch.cat([y for y, _ in pairs]), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([grad for _, grad in pairs]), values.grad, rtol=1e-5, atol=1e-5)


# --- under an engine


class Normalised(nn.Module):
    """A convolution and a norm; DeepSpeed needs a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.norm = GroupBatchNorm2d(CHANNELS, IMAGES)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.norm(self.conv(x)),)


def trained(directory: Path) -> list[tuple[Tensor, Tensor]]:
    """The running statistics after a step that is taken and one that is skipped, at every ZeRO stage."""
    mesh, found = build_mesh(ParallelDims(world_size=2)), []
    for stage, precision in ((0, "bf16"), (1, "bf16"), (2, "fp32"), (3, "bf16")):
        model = randomize(Normalised())
        options = EngineOptions(
            zero_stage=stage,
            precision=precision,
            max_grad_norm=0.0,
            micro_batch_size=IMAGES // 2,
            grad_accum_steps=1,
        )
        groups = [{"name": "all", "params": list(model.parameters()), "weight_decay": 0.0}]
        steps = iter((True, False))
        engine = Engine(model, groups, mesh, options, lambda norm, steps=steps: next(steps))
        span_ranks(engine.module, mesh, micro_batch_size=IMAGES // 2, grad_accum_steps=1)
        for step in range(2):
            x = inputs(step)[mesh.rank * 4 : mesh.rank * 4 + 4].to(DTYPES[precision])
            engine.backward(engine(x)[0].float().sin().sum())
            engine.step(0.1)
            update_running_statistics(engine.module, skipped=engine.skipped)
            assert engine.skipped == (step == 1)
        found.append((model.norm.running_mean, model.norm.running_var))
        save_checkpoint(directory, stage + 1, MasterWeights(engine.deepspeed), mesh, {})
    return found


def test_running_statistics_stay_fp32_under_an_engine_and_are_saved(tmp_path: Path) -> None:
    plain = randomize(Normalised())
    plain(inputs(0))
    update_running_statistics(plain)
    (first, second) = run_on_ranks(trained, 2, tmp_path)
    for stage, (mean, var) in enumerate(first):
        assert (mean.dtype, var.dtype) == (torch.float32, torch.float32)
        assert not torch.equal(mean, mean.bfloat16().float())
        tolerance = 1e-6 if stage == 2 else 1e-2  # of a convolution in bf16
        torch.testing.assert_close(mean, plain.norm.running_mean, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(var, plain.norm.running_var, rtol=tolerance, atol=tolerance)
        assert torch.equal(mean, second[stage][0])
        alone = Normalised()
        load_weights(path_of(tmp_path, stage + 1), alone, 0)
        assert torch.equal(alone.norm.running_mean, mean)
        assert torch.equal(alone.norm.running_var, var)


# --- what is refused


@pytest.mark.parametrize(
    ("group_size", "micro", "ranks", "accum", "message"),
    [
        (6, 4, 2, 1, "groups of 6 images: group_size must divide 4 images of train.micro_batch_size, or be"),
        (8, 4, 2, 2, "groups of 8 images needs them in one micro-batch of all ranks: a rank would see its 4"),
        (16, 4, 6, 1, "groups of 16 images: group_size must divide the global batch"),
    ],
)
def test_micro_batches_must_not_divide_a_group(
    group_size: int, micro: int, ranks: int, accum: int, message: str
) -> None:
    with pytest.raises(ModelError) as error:
        group_ranks(group_size, micro_batch_size=micro, dp_size=ranks, grad_accum_steps=accum)
    assert message in str(error.value)


def test_how_many_ranks_hold_a_group() -> None:
    sizes = {"micro_batch_size": 4, "dp_size": 4}
    assert [group_ranks(n, **sizes, grad_accum_steps=1) for n in (1, 2, 4, 8, 16)] == [1, 1, 1, 2, 4]
    assert group_ranks(2, **sizes, grad_accum_steps=3) == 1


@pytest.mark.parametrize(
    ("norm", "shape", "message"),
    [
        (GroupBatchNorm2d(3, 4), (6, 3, 2, 2), "group_size must divide the images of a forward pass (6)"),
        (GroupBatchNorm2d(3, 4), (4, 2, 2, 2), "takes 4 dims and 3 channels, not [4, 2, 2, 2]"),
        (GroupBatchNorm1d(3, 4), (4, 3, 2, 2), "takes 2 or 3 dims and 3 channels, not [4, 3, 2, 2]"),
        (GroupBatchNorm1d(3, 1), (4, 3), "a group has one value a channel"),
    ],
)
def test_images_that_do_not_fit_are_refused(norm: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError) as error:
        norm(torch.zeros(shape))
    assert message in str(error.value)
    with pytest.raises(ModelError, match="a frozen batch norm needs track_running_stats"):
        GroupBatchNorm1d(3, 4, frozen=True, track_running_stats=False)
    with pytest.raises(LayoutError, match=r"3 consecutive ranks must divide the number of ranks \(2\)"):
        neighbour_group(MESH, 3)
