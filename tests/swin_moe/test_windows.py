"""Windows against their definition, coordinate by coordinate."""

import pytest
import torch

from swin_moe.windows import partition, reverse, shift_mask

SHAPES = [(4, 4, 2), (6, 6, 3), (6, 9, 3), (8, 4, 4), (5, 5, 5), (3, 2, 1)]


@pytest.mark.parametrize(("height", "width", "window"), SHAPES)
def test_partition_by_coordinates(height: int, width: int, window: int) -> None:
    """Window (i, j) of an image holds rows i*w.. and columns j*w.., row by row; images one after another."""
    x = torch.arange(2 * height * width * 3).view(2, height, width, 3)
    windows = partition(x, window)
    across, down = width // window, height // window
    assert windows.shape == (2 * across * down, window * window, 3)
    for number in range(len(windows)):
        image, i, j = number // (down * across), number // across % down, number % across
        for token in range(window * window):
            row, column = i * window + token // window, j * window + token % window
            assert torch.equal(windows[number, token], x[image, row, column])


@pytest.mark.parametrize(("height", "width", "window"), SHAPES)
def test_reverse_undoes_partition(height: int, width: int, window: int) -> None:
    x = torch.randn(2, height, width, 3)
    assert torch.equal(reverse(partition(x, window), window, height, width), x)
    strided = x.transpose(1, 2)  # a map that is not contiguous
    assert torch.equal(reverse(partition(strided.contiguous(), window), window, width, height), strided)


def test_partition_takes_the_output_of_roll() -> None:
    x = torch.arange(16.0).view(1, 4, 4, 1).roll((-1, -1), dims=(1, 2))
    # Rolled by one, the map starts at row 1, column 1: 5 6 / 9 10 is its first window.
    assert partition(x, 2)[0, :, 0].tolist() == [5, 6, 9, 10]


@pytest.mark.parametrize(
    ("height", "width", "window", "shift"),
    [(4, 4, 2, 1), (6, 6, 3, 1), (6, 6, 3, 2), (6, 9, 3, 1), (8, 8, 4, 2), (4, 8, 4, 2), (14, 14, 7, 3)],
)
def test_shift_mask_by_original_coordinates(height: int, width: int, window: int, shift: int) -> None:
    """Two tokens of a window see each other when the shift moved them together.

    The token at (r, c) of the shifted map comes from ((r + s) mod H, (c + s) mod W). Of two tokens of one
    window, one has wrapped around an edge and the other has not exactly when their distance in the original
    map differs from their distance in the shifted one.
    """
    mask = shift_mask(height, width, window, shift)
    across = width // window
    n = window * window
    assert mask.shape == (height * width // n, n, n)
    assert mask.dtype == torch.float32

    def moved(number: int, token: int) -> tuple[tuple[int, int], tuple[int, int]]:
        row = number // across * window + token // window
        column = number % across * window + token % window
        return (row, column), ((row + shift) % height, (column + shift) % width)

    for number in range(len(mask)):
        places = [moved(number, token) for token in range(n)]
        for i, (a, source_a) in enumerate(places):
            for j, (b, source_b) in enumerate(places):
                together = all(source_a[d] - source_b[d] == a[d] - b[d] for d in (0, 1))
                assert mask[number, i, j] == (0.0 if together else float("-inf"))


def test_shift_mask_of_a_small_map_by_hand() -> None:
    """4 x 4 map, window 2, shift 1: the last window holds the four corners, each alone."""
    mask = shift_mask(4, 4, 2, 1)
    hidden = float("-inf")
    assert (mask[0] == 0).all()  # rows 1..2, columns 1..2: no edge inside
    # window 1: columns 3 and 0 of rows 1..2; tokens 0, 2 are column 3, tokens 1, 3 column 0
    assert mask[1, 0].tolist() == [0, hidden, 0, hidden]
    # window 2: rows 3 and 0; tokens 0, 1 are row 3, tokens 2, 3 row 0
    assert mask[2, 0].tolist() == [0, 0, hidden, hidden]
    assert torch.equal(mask[3] == 0, torch.eye(4, dtype=torch.bool))
