"""Masks of any size out of a few patterns: against every pair of tokens, and what is kept of them."""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from swin_moe import build_model
from swin_moe.backbone.window_masks import RecentTensors, WindowMasks, pattern_index, representative
from swin_moe.backbone.windows import WindowGrid
from tests.models import small_swin

CPU = torch.device("cpu")
WINDOWS = [(1, 1), (2, 2), (3, 3), (2, 3), (4, 2), (1, 4)]
SIDES = [1, 2, 3, 4, 5, 7, 9, 10, 13]  # multiples of the windows and others, of one to thirteen windows


def axis_labels(side: int, window: int, grid: WindowGrid) -> list[list[int]]:
    """Of each window along a side, its tokens: 0 in its place, 1 moved around the edge, 2 hidden padding."""
    padded = -(-side // window) * window
    shift = window // 2 if grid.shifted and (padded > window or grid.sees_padding) else 0
    moved = [(token + shift) % padded for token in range(padded)]
    labels = [
        2 if source >= side and not grid.sees_padding else int(source < token)
        for token, source in enumerate(moved)
    ]
    return [labels[start : start + window] for start in range(0, padded, window)]


def plain_mask(height: int, width: int, grid: WindowGrid) -> Tensor:
    """The mask (S, n, n), window by window and pair by pair."""
    masks, window = [], grid.window
    for rows in axis_labels(height, window[0], grid):
        for columns in axis_labels(width, window[1], grid):
            tokens = [(-1, -1) if 2 in pair else pair for pair in itertools.product(rows, columns)]
            masks.append([[0.0 if a == b else float("-inf") for b in tokens] for a in tokens])
    return torch.tensor(masks)


@pytest.mark.parametrize("sees_padding", [False, True], ids=["hidden", "visible"])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_masks_pair_by_pair(window: tuple[int, int], shifted: bool, sees_padding: bool) -> None:
    """Squares and rectangles, one after another with the same kept patterns: the same bits."""
    grid = WindowGrid(window=window, shifted=shifted, padding="visible" if sees_padding else "hidden")
    masks = WindowMasks(grid)
    for height, width in itertools.product(SIDES, SIDES):
        mask, expected = masks.mask((height, width), CPU), plain_mask(height, width, grid)
        assert (mask is None) == (not grid.is_masked(height, width))
        whole = torch.zeros(expected.shape) if mask is None else mask
        assert torch.equal(whole, expected)
        assert mask is None or torch.equal(mask, grid.mask(height, width))


def test_patterns_by_hand() -> None:
    """10 x 9 tokens in windows of 2, shifted by 1: five windows down and, with a padded column, five across.

    A column of padding lies in the last window, so that of each side only the last window differs from the
    others; patterns are those of 3 x 3 windows, of 6 x 5 tokens.
    """
    grid = WindowGrid(window=(2, 2), shifted=True)
    assert representative(grid, 10, 9) == (6, 5)
    along = [0, 0, 0, 1, 2]
    expected = [3 * row + column for row in along for column in along]
    assert pattern_index(grid, 10, 9).tolist() == expected
    # 4 tokens are two windows, and 2 tokens one window, which is not shifted: nothing repeats
    assert representative(grid, 4, 2) == (4, 2)
    assert pattern_index(grid, 4, 2).tolist() == [0, 1]


def test_maps_of_any_padding_share_masks_where_it_is_seen() -> None:
    """Windows of 4, shifted: of a side the last window alone differs, however many tokens of it are zeros.

    So a map of several windows along both sides has the four masks of 2 x 2 windows, 8 x 8 tokens.
    """
    grid = WindowGrid(window=(4, 4), shifted=True, padding="visible")
    assert representative(grid, 13, 23) == representative(grid, 500, 9) == (8, 8)
    assert representative(grid, 3, 23) == (4, 8)
    assert pattern_index(grid, 9, 10).tolist() == [0, 0, 1, 0, 0, 1, 2, 2, 3]
    masks = WindowMasks(grid)
    for height, width in itertools.product(range(1, 60, 7), range(1, 60, 5)):
        masks.mask((height, width), CPU)
    assert sorted(len(patterns) for patterns in masks.patterns) == [1, 2, 2, 4]
    assert masks.patterns.bytes == 9 * 16 * 16 * 4  # nine masks of 16 x 16 pairs in fp32, whatever the sizes


def test_alternating_sizes_make_nothing_anew() -> None:
    """A second round keeps all objects, and sizes that differ by whole windows share patterns."""
    masks = WindowMasks(WindowGrid(window=(4, 4), shifted=True))
    sizes = [(16, 16), (24, 16), (13, 21), (17, 33), (64, 48)]

    def kept() -> list[int]:
        for height, width in sizes:
            masks.mask((height, width), CPU)
        return [id(tensor) for cache in (masks.patterns, masks.indices) for tensor in cache]

    first = kept()
    assert kept() == first
    assert len(masks.indices) == 5
    assert len(masks.patterns) == 2  # multiples of the window; and sides of 4 k + 1 tokens


@pytest.mark.parametrize("sees_padding", [False, True], ids=["hidden", "visible"])
def test_memory_is_bounded(sees_padding: bool) -> None:
    """All sizes up to 40 x 40 tokens: within the bound, and what was used last is kept."""
    most = 9 * 16 * 16 * 4 * 5  # five sets of nine patterns of windows of 4 x 4 tokens in fp32
    grid = WindowGrid(window=(4, 4), shifted=True, padding="visible" if sees_padding else "hidden")
    masks = WindowMasks(grid, most_bytes=most)
    for height, width in itertools.product(range(1, 41, 3), range(1, 41, 2)):
        masks.mask((height, width), CPU)
        assert masks.patterns.bytes <= most
        assert masks.indices.bytes <= most
    grown = masks.patterns.bytes
    masks.mask((4001, 399), CPU)  # a hundred thousand windows: patterns as large as of any map
    assert masks.patterns.bytes <= max(most, grown)


def test_recent_tensors_drop_the_longest_unused() -> None:
    tensors = RecentTensors(most_bytes=8)  # two fp32
    made: list[str] = []

    def get(key: str, size: int = 1) -> None:
        tensors.get(key, lambda: (made.append(key), torch.zeros(size))[1])

    for key in "abacab":
        get(key)
    assert made == ["a", "b", "c", "b"]  # c came when b was unused for the longest time, and b in place of c
    get("large", size=3)
    assert (len(tensors), tensors.bytes) == (1, 12)


def test_recent_tensors_in_several_threads() -> None:
    """Room for three of six tensors, so that each thread removes what others look for."""
    tensors = RecentTensors(most_bytes=12)

    def run(thread: int) -> bool:
        keys = [(thread + i * i) % 6 for i in range(2000)]
        return all(tensors.get(key, lambda key=key: torch.full((1,), key)).item() == key for key in keys)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(run, range(4)))
    finally:
        sys.setswitchinterval(interval)
    tensors.get(6, lambda: torch.zeros(1))
    assert tensors.bytes <= 12


def test_blocks_of_a_stage_share_the_patterns() -> None:
    """Images of two sizes in turn, both other than configured; a plain and a shifted grid of each stage."""
    model = build_model(small_swin(depths=(4, 2))).eval()
    first, second = model.layers[0].blocks[1::2]
    masks = first.options.masks
    assert masks is second.options.masks
    with torch.no_grad():
        for side in (48, 52, 48, 52):
            model(torch.zeros(1, 3, side, side))
    assert [len(cache) for cache in (masks.patterns, masks.indices)] == [2, 2]
