"""Grouped expert MLPs against one matrix product an expert."""

import math

import pytest
import torch
from torch import Tensor

from parallel.expert import ExpertParallel
from swin_moe.experts import GroupedMLP, grouped_linear
from swin_moe.randomness import fork, keep_mask, sample_keys

COUNTS = [[3, 2, 4], [3, 0, 2], [0, 0, 5], [5, 0, 0], [1, 1, 1], [0, 0, 0]]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def piecewise(rows: Tensor, weight: Tensor, bias: Tensor | None, counts: list[int]) -> Tensor:
    """One row after another, by the expert that owns it."""
    owner = [expert for expert, count in enumerate(counts) for _ in range(count)]
    outputs = [
        sum(rows[i, c] * weight[e, c] for c in range(rows.shape[1])) + (0 if bias is None else bias[e])
        for i, e in enumerate(owner)
    ]
    return torch.stack(outputs) if outputs else rows.new_zeros(0, weight.shape[2])


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_grouped_linear_equals_row_by_row(counts: list[int], with_bias: bool) -> None:
    rows, weight = draw(sum(counts), 4), draw(3, 4, 2, seed=1)
    bias = draw(3, 2, seed=2) if with_bias else None
    inputs = [rows, weight] + ([bias] if bias is not None else [])
    y, expected = grouped_linear(rows, weight, bias, counts), piecewise(rows, weight, bias, counts)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    if not sum(counts):
        gradients = torch.autograd.grad(y.sum(), inputs)
        assert all((gradient == 0).all() for gradient in gradients)
        return
    cotangent = draw(*y.shape, seed=3).detach()
    got = torch.autograd.grad(y, inputs, cotangent)
    wanted = torch.autograd.grad(expected, inputs, cotangent, allow_unused=True, materialize_grads=True)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("counts", COUNTS)
def test_grouped_linear_gradcheck(counts: list[int]) -> None:
    bias = draw(3, 2, seed=2)
    rows, weight = draw(sum(counts), 4), draw(3, 4, 2, seed=1)
    assert torch.autograd.gradcheck(lambda r, w, b: grouped_linear(r, w, b, counts), (rows, weight, bias))
    assert torch.autograd.gradcheck(lambda r, w: grouped_linear(r, w, None, counts), (rows, weight))


def test_gradient_of_a_sum_is_not_contiguous() -> None:
    """`sum` sends back one number with stride 0; the gradient of each weight is its expert's row total."""
    rows, weight = draw(3, 2), draw(2, 2, 2, seed=1)
    grouped_linear(rows, weight, None, [1, 2]).sum().backward()
    assert weight.grad is not None
    expected = torch.stack([rows[:1].sum(0), rows[1:].sum(0)])[:, :, None].expand(2, 2, 2)
    torch.testing.assert_close(weight.grad, expected.detach())


def mlp(*, dropout: float = 0.0, fc2_bias: bool = True, local: range = range(3)) -> GroupedMLP:
    placement = ExpertParallel(num_experts=3, local_experts=local)
    layer = GroupedMLP(4, 5, placement, dropout=dropout, fc2_bias=fc2_bias, site=7).double()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed))
    return layer


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize("fc2_bias", [True, False])
def test_mlp_is_linear_gelu_dropout_linear(fc2_bias: bool) -> None:
    layer = mlp(dropout=0.4, fc2_bias=fc2_bias)
    assert len(list(layer.parameters())) == 3 + fc2_bias
    counts, rows, keys = [2, 0, 3], draw(5, 4, seed=9), sample_keys(0, torch.arange(5))
    keep = keep_mask(fork(keys, 7), 5, 0.4)
    assert not keep.all()
    hidden = gelu(piecewise(rows, layer.fc1_weight, layer.fc1_bias, counts))
    trained = piecewise(hidden * keep / (1 - 0.4), layer.fc2_weight, layer.fc2_bias, counts)
    torch.testing.assert_close(layer(rows, counts, keys), trained, rtol=1e-12, atol=1e-12)
    evaluated = piecewise(hidden, layer.fc2_weight, layer.fc2_bias, counts)
    torch.testing.assert_close(layer.eval()(rows, counts, keys), evaluated, rtol=1e-12, atol=1e-12)


def test_mlp_without_rows() -> None:
    """A rank whose experts nobody wants still takes part in the backward pass, with zero gradients."""
    layer = mlp(dropout=0.4)
    rows = draw(0, 4)
    y = layer(rows, [0, 0, 0], torch.zeros(0, dtype=torch.int64))
    assert y.shape == (0, 4)
    y.sum().backward()
    for parameter in layer.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_every_parameter_is_marked_as_expert_parallel() -> None:
    layer = mlp(local=range(1, 3))
    for parameter in layer.parameters():
        assert parameter.experts == range(1, 3)
        assert parameter.allreduce is False
        assert len(parameter) == 2
