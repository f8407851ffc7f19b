"""The position bias that evaluation keeps: the same numbers, and never stale."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from swin_moe.backbone.attention import WindowAttention
from swin_moe.backbone.position_bias import LogCpbBias, PositionBias, TableBias


@pytest.fixture(params=["table", "log_cpb", "sigmoid"])
def bias(request: pytest.FixtureRequest) -> PositionBias:
    made = (
        TableBias((3, 3), 2)
        if request.param == "table"
        else LogCpbBias((3, 3), 2, sigmoid=request.param == "sigmoid")
    )
    with torch.no_grad():
        for parameter in made.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    return made.eval()


def fresh(bias: PositionBias) -> Tensor:
    """Computed with gradients on, where nothing is kept."""
    with torch.enable_grad():
        return bias().detach()


@torch.no_grad()
def test_evaluation_computes_once(bias: PositionBias) -> None:
    first = bias()
    assert bias() is first
    assert torch.equal(first, fresh(bias))
    bias.train()
    assert bias() is not first  # training keeps nothing
    assert bias() is not bias()
    assert torch.equal(bias(), first)


def halve(bias: PositionBias) -> None:
    for parameter in bias.parameters():
        parameter.mul_(0.5)


def halve_by_loading(bias: PositionBias) -> None:
    bias.load_state_dict({name: 0.5 * value for name, value in bias.state_dict().items()})


def halve_by_assigning(bias: PositionBias) -> None:
    bias.load_state_dict({name: 0.5 * value for name, value in bias.state_dict().items()}, assign=True)


def halve_by_replacing(bias: PositionBias) -> None:
    for module in bias.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(0.5 * parameter))


def halve_data(bias: PositionBias) -> None:
    """A write that torch does not count; the call of eval is the documented remedy."""
    for parameter in bias.parameters():
        parameter.data.mul_(0.5)
    bias.train(False)


def halve_in_training(bias: PositionBias) -> None:
    bias.train()
    optimizer = torch.optim.SGD(bias.parameters(), lr=0.5)
    for parameter in bias.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    bias.eval()


CHANGES = [halve, halve_by_loading, halve_by_assigning, halve_by_replacing, halve_data, halve_in_training]


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_change_the_bias(bias: PositionBias, change: Callable[[PositionBias], None]) -> None:
    before = bias()
    change(bias)
    assert not torch.allclose(bias(), before)
    assert torch.equal(bias(), fresh(bias))


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_an_attention_is_never_stale(bias: PositionBias, change: Callable[[PositionBias], None]) -> None:
    layer = WindowAttention(4, 2, bias).eval()
    x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1))
    layer(x)
    change(bias)
    with torch.enable_grad():
        expected = layer(x).detach()
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)  # maybe by another kernel


@torch.no_grad()
def test_precision_and_device(bias: PositionBias) -> None:
    bias()
    assert bias.double()().dtype == torch.float64
    assert torch.equal(bias(), fresh(bias))
    assert bias.to("meta")().device.type == "meta"


@torch.no_grad()
def test_autocast_keeps_its_own(bias: PositionBias) -> None:
    """A bias that was kept under bf16 autocast is not the one of fp32."""
    expected = fresh(bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bias()
    assert torch.equal(bias(), expected)


@torch.no_grad()
def test_other_parameters_for_one_call(bias: PositionBias) -> None:
    before = bias()
    others = {name: 0.5 * parameter for name, parameter in bias.named_parameters()}
    assert not torch.allclose(torch.func.functional_call(bias, others), before)
    assert torch.equal(bias(), before)


@torch.no_grad()
def test_copies_are_independent(bias: PositionBias) -> None:
    before = bias()
    for other in (copy.deepcopy(bias), pickle.loads(pickle.dumps(bias))):
        halve(other)
        assert torch.equal(other(), fresh(other))
        assert not torch.allclose(other(), before)
    assert torch.equal(bias(), before)


@torch.no_grad()
def test_coordinates_survive_bf16() -> None:
    """To bf16 and back: the constants are not rounded by the way; loaded weights find them whole."""
    bias = LogCpbBias((7, 7), 2, sigmoid=True)
    expected = bias.coordinates.clone()
    assert torch.equal(bias.bfloat16().float().coordinates, expected)


def test_inference_mode() -> None:
    with torch.inference_mode():
        bias = TableBias((2, 2), 1).eval()
        first = bias().clone()
        bias.relative_position_bias_table.add_(1.0)
        assert torch.equal(bias(), first + 1.0)


def test_gradients_flow_in_evaluation(bias: PositionBias) -> None:
    with torch.no_grad():
        bias()
    bias().sum().backward()
    assert all(parameter.grad is not None for parameter in bias.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_a_bounded_bias_of_16_bits_is_rounded_once(dtype: torch.dtype, autocast: bool, scale: float) -> None:
    """16 * sigmoid(x) - 8 of the weights as they are, within half a unit in the last place; at most 8."""
    bias = LogCpbBias((4, 3), 2, sigmoid=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in bias.parameters():
        parameter.data.normal_(std=scale**0.5 / 5, generator=generator)
        parameter.data = parameter.data.to(dtype).float()  # what a cast keeps
    exact = (16 * torch.sigmoid(copy.deepcopy(bias).double().cpb_mlp(bias.coordinates.double())) - 8).detach()
    if autocast:
        with torch.autocast("cpu", dtype=dtype):
            table = bias.table()
    else:
        table = bias.to(dtype).table()
        assert bias.coordinates.dtype == torch.float32
        assert bias().dtype == dtype
    assert table.dtype == dtype
    assert table.abs().max() <= 8
    error = (table.double() - exact).abs()
    assert (error <= torch.finfo(dtype).eps / 2 * exact.abs() + 2e-5).all()
    table.float().sum().backward()
    assert all(parameter.grad is not None for parameter in bias.parameters())
