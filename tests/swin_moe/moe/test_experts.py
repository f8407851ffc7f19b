"""Expert MLPs against one row after another under autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.experts.placement import ExpertSlice, Sliced
from tests.swin_moe.moe.expert_rows import (
    OPTIONS,
    WHOLE,
    C,
    H,
    assert_equal,
    draw,
    gradients,
    kept_bytes,
    keys_of,
    mlp,
    name_of,
    row_by_row,
    run,
)

COUNTS = [[3, 2, 4], [3, 0, 2], [0, 0, 5], [5, 0, 0], [1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("counts", COUNTS, ids=name_of)
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_outputs_and_gradients_are_those_of_row_by_row(options: dict[str, Any], counts: list[int]) -> None:
    """Experts without rows, and a rank without any, have zero gradients: they still meet the collectives."""
    layer, rows = mlp(**options), draw(sum(counts), C, seed=50).requires_grad_()
    y, expected = run(layer, rows, counts), row_by_row(layer, rows, counts)
    assert_equal([y], [expected], 1e-10)
    got = gradients(y, layer, rows)
    assert_equal(got, gradients(expected, layer, rows), 1e-10)
    for gradient in got[1:]:
        assert all(not x.any() for x, count in zip(gradient, counts, strict=True) if not count)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_gradcheck(options: dict[str, Any]) -> None:
    layer, rows, counts = mlp(**options), draw(5, C, seed=50).requires_grad_(), [2, 0, 3]

    def f(rows: Tensor, *weights: Tensor) -> Tensor:
        return layer(weights, rows, counts, keys_of(rows), WHOLE)

    assert torch.autograd.gradcheck(f, (rows, *layer.weights()))


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_evaluation_drops_nothing(options: dict[str, Any]) -> None:
    layer, rows = mlp(**options).eval(), draw(5, C, seed=50)
    with torch.no_grad():
        y = layer(layer.weights(), rows, [2, 0, 3], None, WHOLE)
    assert_equal([y], [row_by_row(layer, rows, [2, 0, 3])], 1e-12)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_fp32_at_the_size_of_a_model(activation: str) -> None:
    layer, counts = mlp(dim=384, hidden=1536, activation=activation, dropout=0.1), [7, 0, 12]
    rows = draw(19, 384, seed=50).requires_grad_()
    expected = row_by_row(layer, rows, counts)
    wanted = gradients(expected, layer, rows)
    layer, single = layer.float(), rows.detach().float().requires_grad_()
    y = run(layer, single, counts)
    assert y.dtype == torch.float32
    assert_equal([y, *gradients(y, layer, single)], [expected.float(), *(x.float() for x in wanted)], 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recompute", [False, True])
def test_half_precision(dtype: torch.dtype, recompute: bool) -> None:
    """Each rounding is half a unit in the last place, 2^-9 (bf16) or 2^-12 (fp16); there are about ten."""
    layer, counts = mlp(dim=32, hidden=64, dropout=0.1, recompute=recompute).to(dtype), [7, 0, 12]
    rows = draw(19, 32, seed=50, dtype=dtype).requires_grad_()
    y = run(layer, rows, counts)
    got = [y, *gradients(y, layer, rows)]
    assert {x.dtype for x in got} == {dtype}
    layer, exact = layer.double(), rows.detach().double().requires_grad_()
    expected = row_by_row(layer, exact, counts)
    for a, b in zip(got, [expected, *gradients(expected, layer, exact)], strict=True):
        assert (a.double() - b).norm() <= 10 * torch.finfo(dtype).eps / 2 * b.norm()


def test_autocast_computes_in_its_dtype_and_gives_gradients_in_the_parameters() -> None:
    layer, rows = mlp(dim=32, hidden=64).float(), draw(5, 32, seed=50, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = run(layer, rows, [2, 0, 3])
    assert y.dtype == torch.bfloat16
    got = gradients(y, layer, rows)
    assert {x.dtype for x in got} == {torch.float32}
    low = mlp(dim=32, hidden=64).to(torch.bfloat16)
    rows = rows.detach().bfloat16().requires_grad_()
    expected = run(low, rows, [2, 0, 3])
    assert torch.equal(y, expected)
    assert_equal(got, [x.float() for x in gradients(expected, low, rows)], 0)


# Slices of experts.


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("cuts", [(0, 1, 2), (0, 1, 3), (0, 1, 2, 4), (0, 1, 2, 3, 4, 5)], ids=str)
def test_parts_sum_to_the_whole(options: dict[str, Any], cuts: tuple[int, ...]) -> None:
    """Cuts at n-ths: 6 hidden channels in 4 or 5 parts are uneven; a part may be several slices wide."""
    counts = [2, 0, 3]
    whole, rows = mlp(**options), draw(5, C, seed=50).requires_grad_()
    expected = run(whole, rows, counts)
    wanted = gradients(expected, whole, rows)
    parts = [ExpertSlice(a, b, cuts[-1]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    layers = [mlp(**options, part=part) for part in parts]
    outputs = [run(layer, rows, counts, part) for layer, part in zip(layers, parts, strict=True)]
    assert_equal([torch.stack(outputs).sum(0)], [expected], 1e-12)
    pieces = [gradients(y, layer, rows) for y, layer in zip(outputs, layers, strict=True)]
    assert_equal([torch.stack([piece[0] for piece in pieces]).sum(0)], wanted[:1], 1e-12)
    for i, parameter in enumerate(layers[0].weights()):
        together = torch.cat([piece[1 + i] for piece in pieces], parameter.sliced.dim)
        assert_equal([together], [wanted[1 + i]], 1e-12)


def test_a_module_computes_with_weights_of_other_ranks() -> None:
    """One that holds half of an expert, given the whole's weights, is the whole."""
    half, whole = mlp(part=ExpertSlice(0, 1, 2), dropout=0.4), mlp(dropout=0.4)
    rows = draw(5, C, seed=50)
    y = half(whole.weights(), rows, [2, 0, 3], keys_of(rows), WHOLE)
    assert torch.equal(y, run(whole, rows, [2, 0, 3]))


def test_marks_and_shapes() -> None:
    """Slice 1 of 4: hidden channels 1..2 of 6 (6 / 4 = 1.5, 2 * 6 / 4 = 3), output channel 1 of 4."""
    part = ExpertSlice(1, 2, 4)
    layer = mlp(part=part, activation="swiglu")
    expected = {
        "fc1_weight": ((3, C, 2), Sliced(2, part, H)),
        "fc1_bias": ((3, 2), Sliced(1, part, H)),
        "gate_weight": ((3, C, 2), Sliced(2, part, H)),
        "gate_bias": ((3, 2), Sliced(1, part, H)),
        "fc2_weight": ((3, 2, C), Sliced(1, part, H)),
        "fc2_bias": ((3, 1), Sliced(1, part, C)),
    }
    assert {n: (tuple(p.shape), p.sliced) for n, p in layer.named_parameters()} == expected
    assert [id(weight) for weight in layer.weights()] == [id(getattr(layer, name)) for name in expected]
    assert all(p.experts == range(3) and p.allreduce is False for p in layer.parameters())
    assert len(mlp(fc2_bias=False).weights()) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(
    ("activation", "recompute", "width"),
    [("gelu", False, 2), ("gelu", True, 1), ("swiglu", False, 3), ("swiglu", True, 2)],
)
def test_bytes_kept_a_row(
    activation: str, recompute: bool, width: int, dropout: float, dtype: torch.dtype
) -> None:
    """Bytes an element times C and `width` times H, as the docstring says, with and without dropout."""
    layer = mlp(activation=activation, recompute=recompute, dropout=dropout).to(dtype)
    rows = draw(10, C, seed=50, dtype=dtype).requires_grad_()
    kept = kept_bytes(lambda: run(layer, rows, [3, 0, 7]), layer.weights())
    assert kept == 10 * dtype.itemsize * (C + width * H)


def test_nothing_is_kept_for_a_backward_that_does_not_come() -> None:
    layer, rows = mlp(), draw(5, C, seed=50)
    own = [rows, *layer.weights()]

    def evaluate() -> Tensor:
        with torch.no_grad():
            assert kept_bytes(lambda: run(layer, rows, [2, 0, 3]), own) == 0
        return run(layer, rows, [2, 0, 3])

    assert kept_bytes(evaluate, own) > 0
    frozen = run(layer.requires_grad_(False), rows, [2, 0, 3])
    assert not frozen.requires_grad


def test_frozen_weights_get_no_gradient() -> None:
    layer, rows = mlp(activation="swiglu"), draw(5, C, seed=50).requires_grad_()
    expected = gradients(run(layer, rows, [2, 0, 3]), layer, rows)
    layer.fc1_weight.requires_grad_(False)
    layer.fc2_bias.requires_grad_(False)
    got = torch.autograd.grad(
        run(layer, rows, [2, 0, 3]),
        [rows, *(x for x in layer.weights() if x.requires_grad)],
        draw(5, C, seed=99),
    )
    assert_equal(got, [expected[0], *expected[2:-1]], 0)


def test_backward_twice() -> None:
    """What is kept is not used up, whatever is computed in place."""
    for recompute in (False, True):
        layer, rows = mlp(activation="swiglu", recompute=recompute), draw(5, C, seed=50).requires_grad_()
        y = run(layer, rows, [2, 0, 3]).sum()
        first = torch.autograd.grad(y, [rows, *layer.weights()], retain_graph=True)
        assert_equal(torch.autograd.grad(y, [rows, *layer.weights()]), first, 0)


def test_dropout_without_keys_is_refused() -> None:
    layer, rows = mlp(dropout=0.4), draw(5, C, seed=50)
    with pytest.raises(AssertionError, match="keys"):
        layer(layer.weights(), rows, [2, 0, 3], None, WHOLE)
