"""Windows against their definition, coordinate by coordinate."""

import pytest
import torch

from swin_moe.windows import WindowGrid, partition, reverse

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


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "window"),
    [(4, 4, 2), (6, 6, 3), (6, 9, 3), (8, 8, 4), (4, 8, 4), (8, 4, 4), (14, 14, 7)]
    + [(5, 7, 3), (3, 10, 4), (7, 5, 2), (9, 9, 4), (2, 3, 4), (1, 1, 1)],
)
def test_mask_by_original_coordinates(height: int, width: int, window: int, shifted: bool) -> None:
    """Two tokens of a window see each other when both are of the map and the shift moved them together.

    A side is padded to whole windows, and shifted by half a window if it has more than one. The token at
    (r, c) of the shifted map comes from ((r + s) mod H, (c + t) mod W). Of two tokens of one window, one has
    wrapped around an edge and the other has not exactly when their distance in the original map differs from
    their distance in the shifted one. Padding sees padding: somebody, so that its softmax is a number.
    """
    mask = WindowGrid(window=window, shifted=shifted).mask(height, width)
    tall, wide = -(-height // window) * window, -(-width // window) * window
    down, across = (window // 2 if shifted and side > window else 0 for side in (tall, wide))
    if (tall, wide, down, across) == (height, width, 0, 0):
        assert mask is None
        return
    n = window * window
    assert mask.shape == (tall * wide // n, n, n)
    assert mask.dtype == torch.float32

    def moved(number: int, token: int) -> tuple[tuple[int, int], tuple[int, int]]:
        row = number // (wide // window) * window + token // window
        column = number % (wide // window) * window + token % window
        return (row, column), ((row + down) % tall, (column + across) % wide)

    for number in range(len(mask)):
        places = [moved(number, token) for token in range(n)]
        for i, (a, source_a) in enumerate(places):
            for j, (b, source_b) in enumerate(places):
                real_a, real_b = (row < height and column < width for row, column in (source_a, source_b))
                together = all(source_a[d] - source_b[d] == a[d] - b[d] for d in (0, 1))
                sees = together if real_a and real_b else real_a == real_b
                assert mask[number, i, j] == (0.0 if sees else float("-inf"))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "window"), [(4, 6, 2), (5, 7, 3), (3, 10, 4), (2, 3, 4), (9, 5, 4)]
)
def test_cut_by_coordinates(height: int, width: int, window: int, shifted: bool) -> None:
    """Position (r, c) of the windows holds the token ((r + s) mod H, (c + t) mod W), or a zero."""
    grid = WindowGrid(window=window, shifted=shifted)
    x = torch.arange(1, 2 * height * width + 1).view(2, height, width, 1)
    tall, wide = -(-height // window) * window, -(-width // window) * window
    down, across = (window // 2 if shifted and side > window else 0 for side in (tall, wide))
    windows = grid.cut(x)
    laid_out = reverse(windows, window, tall, wide)
    for b in range(2):
        for row in range(tall):
            for column in range(wide):
                r, c = (row + down) % tall, (column + across) % wide
                expected = x[b, r, c].item() if r < height and c < width else 0
                assert laid_out[b, row, column].item() == expected
    assert torch.equal(grid.join(windows, height, width), x)


@pytest.mark.parametrize(
    ("height", "width", "window"), [(4, 6, 2), (6, 9, 3), (5, 7, 3), (3, 10, 4), (2, 3, 4)]
)
def test_cut_without_rolling_by_coordinates(height: int, width: int, window: int) -> None:
    """Swin-MLP: window - shift zeros before a side that exceeds the window, then as many as fill windows."""
    grid = WindowGrid(window=window, shifted=True, cyclic=False)
    assert grid.mask(height, width) is None
    top, left = (window - window // 2 if side > window else 0 for side in (height, width))
    tall, wide = -(-(top + height) // window) * window, -(-(left + width) // window) * window
    x = torch.arange(1, height * width + 1).view(1, height, width, 1)
    windows = grid.cut(x)
    expected = torch.zeros(1, tall, wide, 1).long()
    for row in range(height):
        for column in range(width):
            expected[0, top + row, left + column] = row * width + column + 1
    assert torch.equal(reverse(windows, window, tall, wide), expected)
    assert torch.equal(grid.join(windows, height, width), x)
    if (height, width, window) == (6, 9, 3):  # sides that the window divides get `shift` after them
        assert (tall - 6, wide - 9, top) == (3, 3, 2)


def test_shift_mask_of_a_small_map_by_hand() -> None:
    """4 x 4 map, window 2, shift 1: the last window holds the four corners, each alone."""
    mask = WindowGrid(window=2, shifted=True).mask(4, 4)
    hidden = float("-inf")
    assert (mask[0] == 0).all()  # rows 1..2, columns 1..2: no edge inside
    # window 1: columns 3 and 0 of rows 1..2; tokens 0, 2 are column 3, tokens 1, 3 column 0
    assert mask[1, 0].tolist() == [0, hidden, 0, hidden]
    # window 2: rows 3 and 0; tokens 0, 1 are row 3, tokens 2, 3 row 0
    assert mask[2, 0].tolist() == [0, 0, hidden, hidden]
    assert torch.equal(mask[3] == 0, torch.eye(4, dtype=torch.bool))
