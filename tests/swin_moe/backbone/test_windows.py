"""Windows against their definition, coordinate by coordinate."""

import pytest
import torch

from swin_moe.backbone.windows import WindowGrid, partition, reverse

Window = tuple[int, int]
SHAPES = [(4, 4, (2, 2)), (6, 9, (3, 3)), (8, 4, (4, 4)), (5, 5, (5, 5)), (3, 2, (1, 1))]
SHAPES += [(4, 6, (2, 3)), (6, 4, (3, 2)), (2, 8, (2, 4)), (3, 10, (1, 5)), (12, 3, (4, 3))]


def padded_and_shifted(side: int, window: int, shifted: bool) -> tuple[int, int]:
    """A side filled up to whole windows, and by how much it is shifted: half a window, if it has several."""
    padded = -(-side // window) * window
    return padded, window // 2 if shifted and padded > window else 0


@pytest.mark.parametrize(("height", "width", "window"), SHAPES)
def test_partition_by_coordinates(height: int, width: int, window: Window) -> None:
    """Window (i, j) of an image holds rows i*h.. and columns j*w.., row by row; images one after another."""
    h, w = window
    x = torch.arange(2 * height * width * 3).view(2, height, width, 3)
    windows = partition(x, window)
    across, down = width // w, height // h
    assert windows.shape == (2 * across * down, h * w, 3)
    for number in range(len(windows)):
        image, i, j = number // (down * across), number // across % down, number % across
        for token in range(h * w):
            row, column = i * h + token // w, j * w + token % w
            assert torch.equal(windows[number, token], x[image, row, column])


@pytest.mark.parametrize(("height", "width", "window"), SHAPES)
def test_reverse_undoes_partition(height: int, width: int, window: Window) -> None:
    x = torch.randn(2, height, width, 3)
    assert torch.equal(reverse(partition(x, window), window, height, width), x)
    strided = x.transpose(1, 2)  # a map that is not contiguous
    turned = window[1], window[0]
    assert torch.equal(reverse(partition(strided.contiguous(), turned), turned, width, height), strided)


def test_partition_takes_the_output_of_roll() -> None:
    x = torch.arange(16.0).view(1, 4, 4, 1).roll((-1, -1), dims=(1, 2))
    # Rolled by one, the map starts at row 1, column 1: 5 6 / 9 10 is its first window.
    assert partition(x, (2, 2))[0, :, 0].tolist() == [5, 6, 9, 10]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "window"),
    [(h, w, (s, s)) for h, w, s in [(4, 4, 2), (6, 6, 3), (6, 9, 3), (8, 8, 4), (4, 8, 4), (8, 4, 4)]]
    + [(h, w, (s, s)) for h, w, s in [(5, 7, 3), (3, 10, 4), (7, 5, 2), (9, 9, 4), (2, 3, 4), (1, 1, 1)]]
    + [(4, 9, (2, 3)), (9, 4, (3, 2)), (2, 8, (2, 4)), (8, 2, (4, 2)), (1, 7, (1, 3)), (5, 7, (2, 3))],
)
def test_mask_by_original_coordinates(height: int, width: int, window: Window, shifted: bool) -> None:
    """Two tokens of a window see each other when both are of the map and the shift moved them together.

    A side is padded to whole windows, and shifted by half a window if it has more than one. The token at
    (r, c) of the shifted map comes from ((r + s) mod H, (c + t) mod W). Of two tokens of one window, one has
    wrapped around an edge and the other has not exactly when their distance in the original map differs from
    their distance in the shifted one. Padding sees padding: somebody, so that its softmax is a number.
    """
    h, w = window
    mask = WindowGrid(window=window, shifted=shifted).mask(height, width)
    (tall, down), (wide, across) = (
        padded_and_shifted(height, h, shifted),
        padded_and_shifted(width, w, shifted),
    )
    if (tall, wide, down, across) == (height, width, 0, 0):
        assert mask is None
        return
    n = h * w
    assert mask.shape == (tall * wide // n, n, n)
    assert mask.dtype == torch.float32

    def moved(number: int, token: int) -> tuple[tuple[int, int], tuple[int, int]]:
        row = number // (wide // w) * h + token // w
        column = number % (wide // w) * w + token % w
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
    ("height", "width", "window"),
    [(4, 6, (2, 2)), (5, 7, (3, 3)), (3, 10, (4, 4)), (2, 3, (4, 4)), (9, 5, (4, 4))]
    + [(4, 6, (2, 3)), (7, 5, (3, 2)), (2, 9, (2, 4)), (9, 2, (4, 2))],
)
def test_cut_by_coordinates(height: int, width: int, window: Window, shifted: bool) -> None:
    """Position (r, c) of the windows holds the token ((r + s) mod H, (c + t) mod W), or a zero."""
    grid = WindowGrid(window=window, shifted=shifted)
    x = torch.arange(1, 2 * height * width + 1).view(2, height, width, 1)
    (tall, down), (wide, across) = (
        padded_and_shifted(side, length, shifted)
        for side, length in zip((height, width), window, strict=True)
    )
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
    ("height", "width", "window"),
    [(4, 6, (2, 2)), (6, 9, (3, 3)), (5, 7, (3, 3)), (3, 10, (4, 4)), (2, 3, (4, 4))]
    + [(4, 6, (2, 3)), (7, 5, (3, 2)), (2, 9, (2, 4)), (9, 2, (4, 2))],
)
def test_cut_without_rolling_by_coordinates(height: int, width: int, window: Window) -> None:
    """Swin-MLP: window - shift zeros before a side that exceeds the window, then as many as fill windows."""
    h, w = window
    grid = WindowGrid(window=window, shifted=True, cyclic=False)
    assert grid.mask(height, width) is None
    top, left = h - h // 2 if height > h else 0, w - w // 2 if width > w else 0
    tall, wide = -(-(top + height) // h) * h, -(-(left + width) // w) * w
    x = torch.arange(1, height * width + 1).view(1, height, width, 1)
    windows = grid.cut(x)
    expected = torch.zeros(1, tall, wide, 1).long()
    for row in range(height):
        for column in range(width):
            expected[0, top + row, left + column] = row * width + column + 1
    assert torch.equal(reverse(windows, window, tall, wide), expected)
    assert torch.equal(grid.join(windows, height, width), x)
    if (height, width, window) == (6, 9, (3, 3)):  # sides that the window divides get `shift` after them
        assert (tall - 6, wide - 9, top) == (3, 3, 2)


def test_shift_mask_of_a_small_map_by_hand() -> None:
    """4 x 4 map, window 2, shift 1: the last window holds the four corners, each alone."""
    mask = WindowGrid(window=(2, 2), shifted=True).mask(4, 4)
    hidden = float("-inf")
    assert (mask[0] == 0).all()  # rows 1..2, columns 1..2: no edge inside
    # window 1: columns 3 and 0 of rows 1..2; tokens 0, 2 are column 3, tokens 1, 3 column 0
    assert mask[1, 0].tolist() == [0, hidden, 0, hidden]
    # window 2: rows 3 and 0; tokens 0, 1 are row 3, tokens 2, 3 row 0
    assert mask[2, 0].tolist() == [0, 0, hidden, hidden]
    assert torch.equal(mask[3] == 0, torch.eye(4, dtype=torch.bool))
