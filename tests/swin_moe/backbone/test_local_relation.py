"""Local relation against loops in Python, by identities, and its gradients in fp64.

Legend: B images, C channels of the values, G aggregations, D channels of a query, k side of the window.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from launcher.plan.base.tracker import LiveBytes
from swin_moe.backbone import local_relation as module
from swin_moe.backbone.attention import WindowAttention
from swin_moe.backbone.local_relation import SIMILARITIES, local_relation
from swin_moe.backbone.neighbourhood import Neighbourhood
from swin_moe.backbone.position_bias import TableBias
from swin_moe.errors import ModelError
from tests.models import randomize
from tests.swin_moe.backbone.relation_by_hand import BY_HAND, relation_by_hand

GROUPS = 2
Inputs = Sequence[Tensor | None]  # query, key, value and prior


def relate(given: Inputs, neighbourhood: Neighbourhood, **options: Any) -> Tensor:
    """`local_relation` of two aggregations."""
    function: Any = local_relation
    y: Tensor = function(*given, neighbourhood, **({"groups": GROUPS} | options))
    return y


def by_loops(given: Inputs, neighbourhood: Neighbourhood, **options: Any) -> Tensor:
    """`relation_by_hand` of two aggregations."""
    function: Any = relation_by_hand
    y: Tensor = function(*given, neighbourhood, **({"groups": GROUPS} | options))
    return y


def differentiable(given: Inputs) -> list[Any]:
    """The same tensors as leaves that get gradients."""
    return [None if x is None else x.detach().requires_grad_() for x in given]


def tensors(
    neighbourhood: Neighbourhood,
    *,
    similarity: str = "square",
    sides: tuple[int, int] = (4, 5),
    images: int = 2,
    channels: int = 4,
    depth: int = 1,
    spread: float = 1.0,
) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Query, key, value and prior in fp64."""
    draw = torch.Generator().manual_seed(len(similarity) + 10 * neighbourhood.stride + depth)
    normal: dict[str, Any] = {"generator": draw, "dtype": torch.float64}
    outputs = [neighbourhood.outputs(side) for side in sides]
    query = spread * torch.randn(images, GROUPS * depth, *outputs, **normal)
    key = spread * torch.randn(images, GROUPS * depth, *sides, **normal)
    value = torch.randn(images, channels, *sides, **normal)
    prior = torch.randn(GROUPS, neighbourhood.kernel_size, neighbourhood.kernel_size, **normal)
    return (None if similarity == "key" else query), key, value, prior


SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": 2},
    "dilated": {"kernel_size": 3, "dilation": 2},
    "wide": {"kernel_size": 5, "stride": 2, "dilation": 2, "padding": 3},  # of a map that it exceeds
    "unpadded": {"kernel_size": 3, "padding": 0},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("similarity", BY_HAND)
def test_against_loops(similarity: Any, shape: str) -> None:
    neighbourhood = Neighbourhood(**SHAPES[shape])
    depth = 2 if shape == "plain" else 1
    given = tensors(
        neighbourhood, similarity=similarity, sides=(6, 6) if shape == "wide" else (4, 5), depth=depth
    )
    options = {"similarity": similarity, "scale": 0.7}
    y = relate(given, neighbourhood, **options)
    assert set(SIMILARITIES) == set(BY_HAND)
    torch.testing.assert_close(y, by_loops(given, neighbourhood, **options))


@pytest.mark.parametrize("parts", ["prior alone", "content alone"])
def test_parts_against_loops(parts: str) -> None:
    neighbourhood = Neighbourhood(kernel_size=3)
    query, key, value, prior = tensors(neighbourhood)
    given: Inputs = (None, None, value, prior) if parts == "prior alone" else (query, key, value, None)
    y = relate(given, neighbourhood)
    torch.testing.assert_close(y, by_loops(given, neighbourhood))


def test_tokens_outside_take_part_where_all_similarities_are_low() -> None:
    """At similarities of -120 the -100 of the outside wins: of values 1, a token at the edge gets e^-20.

    At -76.8 the outside does not count, as if it were at -inf.
    """
    neighbourhood = Neighbourhood(kernel_size=3)
    query, key, value, prior = tensors(neighbourhood)
    assert query is not None
    query, key, value = torch.zeros_like(query), torch.full_like(key, 120.0**0.5), torch.ones_like(value)
    y = relate((query, key, value, prior), neighbourhood)
    torch.testing.assert_close(y, by_loops((query, key, value, prior), neighbourhood))
    assert y[:, :, 0].max() < 1e-6
    torch.testing.assert_close(y[:, :, 1:-1, 1:-1], torch.ones_like(y[:, :, 1:-1, 1:-1]))
    near = relate((query, 0.8 * key, value, prior), neighbourhood)
    torch.testing.assert_close(near, torch.ones_like(near))


@pytest.mark.parametrize("similarity", BY_HAND)
@pytest.mark.parametrize("shape", ["plain", "strided", "dilated"])
def test_gradients(similarity: Any, shape: str) -> None:
    neighbourhood = Neighbourhood(**SHAPES[shape])
    given = tensors(neighbourhood, similarity=similarity, sides=(3, 4), images=1, depth=2)

    def run(*inputs: Tensor | None) -> Tensor:
        return relate(inputs, neighbourhood, similarity=similarity, scale=0.7)

    assert torch.autograd.gradcheck(run, differentiable(given))


@pytest.mark.parametrize("parts", ["prior alone", "content alone"])
def test_gradients_of_parts(parts: str) -> None:
    neighbourhood = Neighbourhood(kernel_size=3)
    query, key, value, prior = tensors(neighbourhood, sides=(3, 4), images=1)
    given: Inputs = (None, None, value, prior) if parts == "prior alone" else (query, key, value, None)

    def run(*inputs: Tensor | None) -> Tensor:
        return relate(inputs, neighbourhood)

    assert torch.autograd.gradcheck(run, differentiable(given))


def test_few_images_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to rounding: a processor computes the exponentials at the end of a row otherwise than the others."""
    neighbourhood = Neighbourhood(kernel_size=3)
    results = []
    for most in (2**24, 9 * GROUPS * 20 * 2):  # all five, and two at a time
        monkeypatch.setattr(module, "MOST_WEIGHTS", most)
        given = differentiable([x.float() for x in tensors(neighbourhood, images=5)])
        y = relate(given, neighbourhood)
        y.square().sum().backward()
        results.append([y, *(x.grad for x in given)])
    torch.testing.assert_close(*results)


def test_equal_weights_are_a_mean_of_the_tokens_inside() -> None:
    neighbourhood = Neighbourhood(kernel_size=3)
    value, zeros = torch.randn(1, 4, 4, 5), torch.zeros(1, GROUPS, 4, 5)
    y = local_relation(zeros, zeros, value, torch.zeros(GROUPS, 3, 3), neighbourhood, groups=GROUPS)
    pool = torch.nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    torch.testing.assert_close(y, pool(value))


def test_a_prior_of_one_offset_is_a_shift() -> None:
    neighbourhood = Neighbourhood(kernel_size=3)
    query, key, value, _ = tensors(neighbourhood)
    prior = torch.zeros(GROUPS, 3, 3).double()
    prior[0, 0, 1], prior[1, 1, 2] = 1000.0, 1000.0  # the token above, and the one on the right
    y = relate((query, key, value, prior), neighbourhood)
    torch.testing.assert_close(y[:, :2, 1:], value[:, :2, :-1], rtol=0, atol=0)
    torch.testing.assert_close(y[:, 2:, :, :-1], value[:, 2:, :, 1:], rtol=0, atol=0)
    assert y[:, :2, 0].count_nonzero() == 0  # the token above the first row is zero: it is in the softmax


def test_a_window_of_one_token_is_the_identity() -> None:
    neighbourhood = Neighbourhood(kernel_size=1)
    query, key, value, prior = tensors(neighbourhood)
    assert torch.equal(relate((query, key, value, prior), neighbourhood), value)


def test_is_window_attention_at_the_centre_of_a_window() -> None:
    """With queries and keys of a head's channels, and the bias of the centre's row for the prior."""
    side, heads, dim = 3, 2, 8
    attention = WindowAttention(dim, heads, TableBias((side, side), heads))
    randomize(attention)
    attention.proj = torch.nn.Identity()  # type: ignore[assignment]
    x = torch.randn(2, side * side, dim)
    centre = side * side // 2
    q, k, v = (part.transpose(1, 2).reshape(2, dim, side, side) for part in attention.qkv(x).chunk(3, dim=-1))
    prior = attention.position_bias()[:, centre].view(heads, side, side)
    y = local_relation(
        q[:, :, 1:2, 1:2],
        k,
        v,
        prior,
        Neighbourhood(kernel_size=side, padding=0),
        groups=heads,
        similarity="product",
        scale=attention.scale,
    )
    torch.testing.assert_close(y.flatten(1), attention(x)[:, centre])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_its_inputs_and_results_alone(dtype: torch.dtype) -> None:
    neighbourhood = Neighbourhood(kernel_size=5)
    half = differentiable([x.to(dtype) for x in tensors(neighbourhood, sides=(7, 7))])
    wide = differentiable([x.float() for x in half])
    for given in (half, wide):
        y = relate(given, neighbourhood)
        assert y.dtype == given[0].dtype
        y.backward(torch.ones_like(y))
    expected = relate(wide, neighbourhood)
    assert torch.equal(relate(half, neighbourhood), expected.to(dtype))
    for one, other in zip(half, wide, strict=True):
        torch.testing.assert_close(one.grad, other.grad.to(dtype))


def test_keeps_its_inputs_alone_for_the_backward_pass() -> None:
    neighbourhood = Neighbourhood(kernel_size=7)
    given = differentiable(tensors(neighbourhood, sides=(16, 16), channels=16))
    saved: list[int] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        relate(given, neighbourhood)
    assert sorted(saved) == sorted(x.data_ptr() for x in given)


@pytest.mark.parametrize("training", [False, True])
def test_memory_is_not_that_of_unfolded_values(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfold is 49 maps of values. Here it is some maps, and the C / 8 weights of a few images."""
    images, channels, sides = 8, 64, (28, 28)
    monkeypatch.setattr(module, "MOST_WEIGHTS", 49 * channels // 8 * 28 * 28)  # those of one image
    with torch.device("meta"):
        query, key = (torch.empty(images, channels // 8, *sides, requires_grad=training) for _ in range(2))
        value = torch.empty(images, channels, *sides, requires_grad=training)
        prior = torch.empty(channels // 8, 7, 7, requires_grad=training)
    tracker = LiveBytes()
    with tracker:
        y = local_relation(query, key, value, prior, Neighbourhood(kernel_size=7), groups=channels // 8)
        if training:
            y.backward(torch.empty_like(y))
    maps = tracker.peak / value.nbytes
    assert maps < (12 if training else 5)


def test_refuses_shapes_that_do_not_fit() -> None:
    neighbourhood = Neighbourhood(kernel_size=3, stride=2)
    query, key, value, prior = tensors(neighbourhood)
    with pytest.raises(ModelError, match=r"3 aggregations must divide 4 channels of the values"):
        relate((query, key, value, prior), neighbourhood, groups=3)
    with pytest.raises(ModelError, match=r"a map of \[4, 5\] has \[2, 3\] windows"):
        relate((key, key, value, prior), neighbourhood)
    with pytest.raises(ModelError, match="queries and keys go together"):
        relate((None, key, value, prior), neighbourhood)
