"""Expert MLPs against one row after another under autograd."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.experts.placement import ExpertParallel, ExpertSlice, Sliced
from swin_moe.moe.experts import ExpertMLP
from swin_moe.moe.grouped_gemm import grouped
from swin_moe.random.keyed import fold_in, keep_mask, sample_keys

C, H, SITE = 4, 6, 7
COUNTS = [[3, 2, 4], [3, 0, 2], [0, 0, 5], [5, 0, 0], [1, 1, 1], [0, 0, 0]]
WHOLE = ExpertSlice()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def mlp(
    *,
    experts: int = 3,
    dim: int = C,
    hidden: int = H,
    part: ExpertSlice = WHOLE,
    activation: Any = "gelu",
    dropout: float = 0.0,
    fc2_bias: bool = True,
    recompute: bool = False,
) -> ExpertMLP:
    """Experts whose weights are drawn; a part has the columns of the whole."""
    placement = ExpertParallel(num_experts=experts, local_experts=range(experts), part=part)
    layer = ExpertMLP(
        dim,
        hidden,
        placement,
        activation=activation,
        dropout=dropout,
        fc2_bias=fc2_bias,
        recompute=recompute,
        site=SITE,
    ).double()
    for seed, (name, parameter) in enumerate(layer.named_parameters()):
        shape, sliced = list(parameter.shape), getattr(layer, name).sliced
        if sliced is not None:
            shape[sliced.dim] = sliced.size
        whole = draw(*shape, seed=seed) / math.sqrt(shape[1])
        parameter.data.copy_(whole if sliced is None else sliced.take(whole))
    return layer


def run(layer: ExpertMLP, rows: Tensor, counts: list[int], part: ExpertSlice = WHOLE) -> Tensor:
    return layer(layer.weights(), rows, counts, keys_of(rows), part)


def keys_of(rows: Tensor) -> Tensor:
    return sample_keys(3, torch.arange(len(rows)))


def row_by_row(layer: ExpertMLP, rows: Tensor, counts: list[int]) -> Tensor:
    """Each row by the expert that owns it, in the words of the definition."""
    owner = [expert for expert, count in enumerate(counts) for _ in range(count)]
    keep = keep_mask(fold_in(keys_of(rows), SITE), layer.hidden, layer.dropout.rate)
    answers = []
    for row, e, kept in zip(rows, owner, keep, strict=True):
        hidden = row @ layer.fc1_weight[e] + layer.fc1_bias[e]
        if layer.gate_weight is None:
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        else:
            gate = row @ layer.gate_weight[e] + layer.gate_bias[e]
            hidden = hidden * gate / (1 + torch.exp(-gate))
        if layer.training:
            hidden = hidden * kept / (1 - layer.dropout.rate)
        answer = hidden @ layer.fc2_weight[e]
        answers.append(answer if layer.fc2_bias is None else answer + layer.fc2_bias[e])
    return torch.stack(answers) if answers else rows[:, :0] @ rows.new_zeros(0, rows.shape[1])


def gradients(y: Tensor, layer: ExpertMLP, rows: Tensor) -> list[Tensor]:
    wanted = [rows, *layer.weights()]
    cotangent = draw(*y.shape, seed=99, dtype=y.dtype)
    return list(torch.autograd.grad(y, wanted, cotangent, allow_unused=True, materialize_grads=True))


def assert_equal(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, check_dtype=False)


OPTIONS = [
    {"activation": activation, "dropout": dropout, "recompute": recompute, "fc2_bias": fc2_bias}
    for activation in ("gelu", "swiglu")
    for dropout in (0.0, 0.4)
    for recompute in (False, True)
    for fc2_bias in ((True, False) if activation == "gelu" and not recompute else (True,))
]


def name_of(value: object) -> str:
    return "-".join(str(item) for item in value.values()) if isinstance(value, dict) else str(value)


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


# What is kept and what is asked.


def kept_bytes(f: Callable[[], Tensor], inputs: Sequence[Tensor]) -> int:
    """Bytes that are saved for backward, besides the weights, each tensor once."""
    kept: dict[int, int] = {}
    own = {x.data_ptr() for x in inputs}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in own:
            kept[x.data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        f()
    return sum(kept.values())


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


# The grouped products of a GPU: their arithmetic on the CPU, which has fp32 and bf16 of them.


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
