"""Patches and merging, element by element."""

import torch

from swin_moe.backbone.patch import PatchEmbed, PatchMerging


def normalised(values: torch.Tensor) -> torch.Tensor:
    """A layer norm without its weights, over the last dim."""
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def test_patch_embedding_is_one_product_a_patch() -> None:
    layer = PatchEmbed((2, 2), 3, 5).double()
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    y = layer(images)
    assert y.shape == (2, 2, 3, 5)
    weight = layer.proj.weight.flatten(1)  # (5, 3 * 2 * 2)
    for b in range(2):
        for row in range(2):
            for column in range(3):
                patch = images[b, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
                expected = normalised(weight @ patch + layer.proj.bias)
                torch.testing.assert_close(y[b, row, column], expected, rtol=1e-10, atol=1e-10)


def test_merging_order_by_hand() -> None:
    """The 2 x 2 neighbours a b / c d stand side by side as a, c, b, d: column by column.

    A released checkpoint's reduction weight depends on that order.
    """
    layer = PatchMerging(1).double()
    x = torch.tensor([[1.0, 2.0, 10.0, 20.0], [3.0, 4.0, 30.0, 50.0]], dtype=torch.float64).view(1, 2, 4, 1)
    y = layer(x)
    assert y.shape == (1, 1, 2, 2)
    neighbours = torch.tensor([[1.0, 3.0, 2.0, 4.0], [10.0, 30.0, 20.0, 50.0]], dtype=torch.float64)
    expected = normalised(neighbours) @ layer.reduction.weight.T
    torch.testing.assert_close(y[0, 0], expected, rtol=1e-10, atol=1e-10)


def test_merging_pads_odd_sides_with_zeros() -> None:
    layer = PatchMerging(2)
    x = torch.randn(1, 3, 5, 2)
    padded = torch.zeros(1, 4, 6, 2)
    padded[:, :3, :5] = x
    assert layer(x).shape == (1, 2, 3, 4)
    assert torch.equal(layer(x), layer(padded))
