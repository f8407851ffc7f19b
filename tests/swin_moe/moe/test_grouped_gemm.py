"""The grouped products of a GPU: their arithmetic on the CPU, which has those of fp32 and bf16."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.experts.placement import ExpertSlice
from swin_moe.moe.grouped_gemm import grouped
from tests.swin_moe.moe.expert_rows import (
    OPTIONS,
    assert_equal,
    draw,
    gradients,
    kept_bytes,
    mlp,
    name_of,
    row_by_row,
    run,
)


@pytest.fixture
def grouped_products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has grouped products taken wherever there are rows; a list of the rows of each call."""
    calls: list[int] = []

    def count(call: Any, rows: Tensor, *rest: Any) -> Tensor:
        calls.append(len(rows))
        return grouped(call, rows, *rest)

    monkeypatch.setattr("swin_moe.moe.experts.has_grouped_products", lambda rows, hidden: len(rows) > 0)
    monkeypatch.setattr("swin_moe.moe.experts.grouped", count)
    return calls


@pytest.mark.parametrize("counts", [[7, 2, 12], [7, 0, 12], [0, 0, 9], [9, 0, 0]], ids=name_of)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_grouped_products(options: dict[str, Any], counts: list[int], grouped_products: list[int]) -> None:
    layer = mlp(dim=16, hidden=24, **options)
    rows = draw(sum(counts), 16, seed=50).requires_grad_()
    expected = row_by_row(layer, rows, counts)
    wanted = [expected, *gradients(expected, layer, rows)]
    layer, single = layer.float(), rows.detach().float().requires_grad_()
    y = run(layer, single, counts)
    assert_equal([y, *gradients(y, layer, single)], [x.float() for x in wanted], 1e-5)
    assert grouped_products == [sum(counts)]
    run(layer, single, counts).sum().backward()  # an expanded gradient


@pytest.mark.parametrize("recompute", [False, True])
def test_grouped_products_of_bf16(recompute: bool, grouped_products: list[int]) -> None:
    layer, counts = mlp(dim=32, hidden=64, dropout=0.1, recompute=recompute).to(torch.bfloat16), [7, 0, 12]
    rows = draw(19, 32, seed=50, dtype=torch.bfloat16).requires_grad_()
    y = run(layer, rows, counts)
    got = [y, *gradients(y, layer, rows)]
    layer, exact = layer.double(), rows.detach().double().requires_grad_()
    expected = row_by_row(layer, exact, counts)
    for a, b in zip(got, [expected, *gradients(expected, layer, exact)], strict=True):
        assert (a.double() - b).norm() <= 10 * 2**-9 * b.norm()
    assert len(grouped_products) == 1


class _AsOnBlackwell(torch.autograd.Function):
    """A grouped product whose weight gradients are NaN where a group has no rows (pytorch 172439)."""

    @staticmethod
    def forward(ctx: Any, product: Any, rows: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        ctx.product = product
        ctx.save_for_backward(rows, weight, offs)
        return product(rows, weight, offs=offs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, offs = (x.detach().requires_grad_(x.is_floating_point()) for x in ctx.saved_tensors)
        with torch.enable_grad():
            y = ctx.product(rows, weight, offs=offs)
        by_rows, by_weight = torch.autograd.grad(y, [rows, weight], grad)
        return None, by_rows, spoilt(by_weight, offs), None


def spoilt(gradient: Tensor, offs: Tensor) -> Tensor:
    gradient[offs.diff(prepend=offs.new_zeros(1)) == 0] = float("nan")
    return gradient


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_garbage_of_experts_without_rows_is_cleared(
    options: dict[str, Any], grouped_products: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    product = F.grouped_mm

    def as_on_blackwell(rows: Tensor, weight: Tensor, *, offs: Tensor) -> Tensor:
        if weight.dim() == 2:
            return spoilt(product(rows, weight, offs=offs), offs)
        return _AsOnBlackwell.apply(product, rows, weight, offs)

    layer = mlp(dim=16, hidden=24, **options).float()
    rows = draw(19, 16, seed=50, dtype=torch.float32).requires_grad_()
    y = run(layer, rows, [7, 0, 12])
    wanted = [y, *gradients(y, layer, rows)]
    monkeypatch.setattr(F, "grouped_mm", as_on_blackwell)
    y = run(layer, rows, [7, 0, 12])
    assert any(x.isnan().any() for x in gradients(y, layer, rows))  # the fault is there
    monkeypatch.setattr("swin_moe.moe.grouped_gemm.writes_garbage_for_empty", lambda rows: True)
    y = run(layer, rows, [7, 0, 12])
    assert_equal([y, *gradients(y, layer, rows)], wanted, 0)


@pytest.mark.parametrize("part", [ExpertSlice(0, 1, 2), ExpertSlice(1, 2, 2)], ids=str)
def test_grouped_products_of_a_slice(part: ExpertSlice, grouped_products: list[int]) -> None:
    layer, rows = mlp(dim=16, hidden=48, part=part, dropout=0.4).float(), draw(9, 16, seed=50).float()
    rows.requires_grad_()
    y = run(layer, rows, [4, 0, 5], part)
    got = [y, *gradients(y, layer, rows)]
    assert grouped_products
    layer, exact = layer.double(), rows.detach().double().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swin_moe.moe.experts.has_grouped_products", lambda rows, hidden: False)
        expected = run(layer, exact, [4, 0, 5], part)
    assert_equal(got, [x.float() for x in (expected, *gradients(expected, layer, exact))], 1e-5)


@pytest.mark.parametrize(("recompute", "width"), [(False, 2), (True, 1)])
def test_bytes_kept_by_grouped_products(recompute: bool, width: int, grouped_products: list[int]) -> None:
    """As those of the loop, and the experts' last rows, 4 bytes each."""
    layer = mlp(dim=16, hidden=24, recompute=recompute).float()
    rows = draw(10, 16, seed=50, dtype=torch.float32).requires_grad_()
    kept = kept_bytes(lambda: run(layer, rows, [3, 0, 7]), layer.weights())
    assert kept == 10 * 4 * (16 + width * 24) + 3 * 4
