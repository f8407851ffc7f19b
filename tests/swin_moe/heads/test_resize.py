"""Resizing and pooling by matrix products: numbers by hand, and torch's own functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe.heads.resize import adaptive_average_pool, average_matrix, bilinear_matrix, resize, resize_band
from tests.models import randn

CPU = torch.device("cpu")
SIDES = [((5, 7), (10, 14)), ((10, 13), (37, 50)), ((1, 1), (4, 3)), ((8, 9), (3, 9)), ((16, 11), (128, 30))]


def with_gradient(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A result, and the gradient of a loss that weighs each of its values otherwise."""
    weights = randn(*y.shape, seed=5, dtype=y.dtype)
    return y.detach(), torch.autograd.grad((y.sin() * weights).sum(), x)[0]


def check(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_bilinear_weights_by_hand() -> None:
    """From 2 to 4 tokens: centres at -0.25, 0.25, 0.75, 1.25 of the old ones; from 4 to 2: at 0.5, 2.5."""
    expected = [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    assert bilinear_matrix(2, 4, CPU).tolist() == expected
    assert bilinear_matrix(4, 2, CPU).tolist() == [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    assert bilinear_matrix(1, 3, CPU).tolist() == [[1.0]] * 3


def test_average_weights_by_hand() -> None:
    """5 tokens in 2 bins: 0-2 and 2-4, which share the middle one; 2 tokens in 3 bins: 0, both, 1."""
    third = 1 / 3
    assert average_matrix(5, 2, CPU).tolist() == [[third, third, third, 0, 0], [0, 0, third, third, third]]
    assert average_matrix(2, 3, CPU).tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]


def test_a_map_by_hand() -> None:
    """Corners stay, and the centre of four pixels is their mean."""
    x = torch.tensor([[[[0.0, 4.0], [8.0, 20.0]]]])
    assert resize(x, (4, 4))[0, 0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 4, 8, 20]
    assert resize(x, (1, 1)).item() == adaptive_average_pool(x, 1).item() == 8.0
    assert resize(x, (2, 2)) is x


@pytest.mark.parametrize(("before", "after"), SIDES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_resize_equals_interpolate(
    before: tuple[int, int],
    after: tuple[int, int],
    dtype: torch.dtype,
    tolerance: float,
    layout: torch.memory_format,
) -> None:
    x = randn(2, 3, *before, dtype=dtype).to(memory_format=layout).requires_grad_()
    reference = F.interpolate(x, after, mode="bilinear", align_corners=False)
    check(with_gradient(resize(x, after), x), with_gradient(reference, x), tolerance)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("sides", [(16, 16), (7, 4), (2, 5)], ids=str)
def test_pooling_equals_torchs(sides: tuple[int, int], bins: int) -> None:
    x = randn(2, 3, *sides).requires_grad_()
    reference = F.adaptive_avg_pool2d(x, bins)
    check(with_gradient(adaptive_average_pool(x, bins), x), with_gradient(reference, x), 1e-5)


@pytest.mark.parametrize("height", [1, 4, 7])
def test_bands_are_the_whole(height: int) -> None:
    """Bits, whatever the height of a band; and `resize` up to rounding."""
    x, size = randn(2, 3, 10, 13), (37, 50)
    whole = resize_band(x, size, slice(None))
    bands = [resize_band(x, size, slice(first, first + height)) for first in range(0, 37, height)]
    assert torch.equal(torch.cat(bands, dim=2), whole)
    torch.testing.assert_close(whole, resize(x, size), rtol=0, atol=1e-5)


@pytest.mark.parametrize("function", [lambda x: resize(x, (29, 31)), lambda x: adaptive_average_pool(x, 3)])
def test_products_are_fp32_in_autocast_and_of_bf16_maps(function) -> None:  # type: ignore[no-untyped-def]
    """A third and the like are no bf16 numbers: weights in bf16 would move every value by up to 2^-9."""
    x = 100 + randn(1, 4, 10, 11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = function(x)
    assert torch.equal(inside, function(x))
    half = x.bfloat16()
    assert function(half).dtype == torch.bfloat16
    assert torch.equal(function(half), function(half.float()).bfloat16())


def test_shapes_alone() -> None:
    """On the meta device, where models are counted and planned; autocast does not know it."""
    x = torch.empty(2, 3, 10, 13, device="meta")
    assert resize(x, (37, 50)).shape == (2, 3, 37, 50)
    assert adaptive_average_pool(x, 6).shape == (2, 3, 6, 6)
