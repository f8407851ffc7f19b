"""Windows of three axes against plain loops: partition, masks of every rule, their patterns, position bias.

Legend: a map of D x H x W tokens, n tokens a window, S windows of a map, h heads, C channels.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from swin_moe import build_model
from swin_moe.backbone.attention import CosineAttention, WindowAttention
from swin_moe.backbone.block import SwinBlock
from swin_moe.backbone.patch import PatchEmbed, PatchMerging
from swin_moe.backbone.position_bias import LogCpbBias, TableBias, log_coordinates, relative_index
from swin_moe.backbone.window_masks import PatternMask, WindowMasks, pattern_counts, pattern_index
from swin_moe.backbone.windows import WindowGrid, partition, reverse
from tests.models import V2, randn, randomize, small_swin

Sides = tuple[int, ...]
CPU = torch.device("cpu")
RULES = ["hidden", "visible", "fitted"]
WINDOW = (2, 3, 3)
MAPS = [(4, 6, 6), (3, 7, 5), (5, 3, 4), (1, 2, 8), (2, 3, 3), (1, 1, 1), (7, 4, 2)]


# The rules of a side, of one axis alone.


def lengths(side: int, window: int, shifted: bool, rule: str) -> tuple[int, int, int]:
    """Of a side: its length with padding, its window, and its shift."""
    fits = side <= window
    if rule == "fitted" and fits:
        return side, side, 0
    padded = math.ceil(side / window) * window
    return padded, window, window // 2 if shifted and (rule == "visible" or not fits) else 0


def windows_of(sides: Sides, window: Sides, shifted: bool, rule: str) -> Iterator[list[Sides]]:
    """The places of each window, token by token, in the map before the shift; those outside are padding.

    Each place stands as (source, is_rolled) pairs, one an axis.
    """
    axes = [lengths(side, length, shifted, rule) for side, length in zip(sides, window, strict=True)]
    starts = itertools.product(*(range(0, padded, length) for padded, length, _ in axes))
    for start in starts:
        tokens = itertools.product(
            *(range(s, s + length) for s, (_, length, _) in zip(start, axes, strict=True))
        )
        yield [
            tuple(
                ((place + shift) % padded, place + shift >= padded)
                for place, (padded, _, shift) in zip(token, axes, strict=True)
            )
            for token in tokens
        ]


def sees(a: Sides, b: Sides, sides: Sides, rule: str) -> bool:
    """Whether two tokens of a window attend to each other."""
    if rule == "hidden":
        real_a, real_b = (all(p < s for (p, _), s in zip(t, sides, strict=True)) for t in (a, b))
        if not (real_a and real_b):
            return real_a == real_b
    return all(x[1] == y[1] for x, y in zip(a, b, strict=True))


def masks_of(sides: Sides, window: Sides, shifted: bool, rule: str) -> Tensor:
    """The mask (S, n, n), pair by pair."""
    allowed = torch.tensor(
        [
            [[sees(a, b, sides, rule) for b in tokens] for a in tokens]
            for tokens in windows_of(sides, window, shifted, rule)
        ]
    )
    return torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))


def expanded(mask: PatternMask) -> Tensor:
    """A mask of each window (S, n, n), from the order in which windows attend."""
    rows = torch.repeat_interleave(torch.arange(len(mask.masks)), torch.tensor(mask.counts))
    found = torch.empty(len(rows), *mask.masks.shape[1:])
    found[mask.order] = mask.masks[rows]
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("sides", MAPS, ids=str)
def test_masks_pair_by_pair(sides: Sides, shifted: bool, rule: str) -> None:
    grid = WindowGrid(window=WINDOW, shifted=shifted, padding=rule)
    expected = masks_of(sides, WINDOW, shifted, rule)
    mask = grid.mask(*sides)
    assert torch.equal(torch.zeros(expected.shape) if mask is None else mask, expected)
    found = WindowMasks(grid).mask(sides, CPU)
    assert (found is None) == (mask is None)
    if isinstance(found, PatternMask):
        assert torch.equal(expanded(found), expected)
        assert torch.equal(found.place[found.order], torch.arange(len(expected)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sides", [*MAPS, (9, 16, 20)], ids=str)
def test_cut_by_places(sides: Sides, rule: str) -> None:
    """Each token of each window comes from its place in the map, or is a zero; `join` puts it back."""
    x = torch.arange(1, 1 + 2 * math.prod(sides)).view(2, *sides, 1)
    for shifted in (False, True):
        grid = WindowGrid(window=WINDOW, shifted=shifted, padding=rule)
        windows = grid.cut(x)
        expected = []
        for clip in x:
            for tokens in windows_of(sides, WINDOW, shifted, rule):
                places = [tuple(p for p, _ in token) for token in tokens]
                expected.append(
                    [
                        clip[p].item() if all(i < s for i, s in zip(p, sides, strict=True)) else 0
                        for p in places
                    ]
                )
        assert windows[..., 0].tolist() == expected
        assert torch.equal(grid.join(windows, *sides), x)


def test_partition_by_coordinates() -> None:
    x = torch.arange(2 * 4 * 6 * 2 * 3).view(2, 4, 6, 2, 3)
    windows = partition(x, (2, 3, 1))
    assert windows.shape == (2 * 2 * 2 * 2, 6, 3)
    # window (1, 0, 1) along time, height and width of the second clip, and its token (1, 2, 0)
    assert torch.equal(windows[8 + 4 + 0 + 1, 3 + 2], x[1, 2 + 1, 2, 1])
    assert torch.equal(reverse(windows, (2, 3, 1), 4, 6, 2), x)


def test_27_regions_are_8_patterns() -> None:
    """The released code numbers 27 regions of the shifted map and masks pairs of two; 16 x 14 x 21 tokens.

    Along each axis a region ends one window before the end, and one shift before the end.
    """
    sides, window, shift = (16, 14, 21), (8, 7, 7), (4, 3, 3)
    regions, number = torch.zeros(sides), 0
    for place in itertools.product(
        *(
            [slice(None, -length), slice(-length, -by), slice(-by, None)]
            for length, by in zip(window, shift, strict=True)
        )
    ):
        regions[place], number = number, number + 1
    tokens = partition(regions[None, ..., None], window)[..., 0]
    expected = tokens[:, :, None] != tokens[:, None, :]
    grid = WindowGrid(window=window, shifted=True, padding="fitted")
    mask = WindowMasks(grid).mask(sides, CPU)
    assert isinstance(mask, PatternMask)
    assert number == 27
    assert len(mask.masks) == len(mask.masks.unique(dim=0)) == 8
    # of 2 x 2 x 3 windows, where the last along each axis differs
    assert mask.counts == (2, 1, 2, 1, 2, 1, 2, 1)
    assert torch.equal(expanded(mask) < 0, expected)
    # of a map that is one window along height and width, two: the last in time, and the others
    flat = WindowMasks(grid).mask((16, 7, 5), CPU)
    assert isinstance(flat, PatternMask)
    assert (len(flat.masks), flat.counts) == (2, (1, 1))
    assert WindowMasks(grid).mask((8, 7, 5), CPU) is None


def test_counts_of_patterns() -> None:
    grid = WindowGrid(window=WINDOW, shifted=True)
    for sides in [(9, 20, 31), *MAPS]:
        counts = pattern_index(grid, *sides).bincount().tolist()
        assert list(pattern_counts(grid, *sides)) == counts
    assert len(pattern_counts(grid, 9, 20, 31)) == 27  # padding hidden: three along each side


def test_memory_of_masks_does_not_depend_on_the_clip() -> None:
    masks = WindowMasks(WindowGrid(window=(4, 4, 4), shifted=True, padding="fitted"))
    for sides in itertools.product((5, 8, 40), (6, 33), (7, 64)):
        masks.mask(sides, CPU)
    assert [len(patterns) for patterns in masks.patterns] == [8]


# Blocks.


def mixed_by_loops(block: SwinBlock, x: Tensor, rule: str) -> Tensor:
    """`block.mix_windows`, window by window, each token with the tokens that it sees."""
    sides, grid, layer = tuple(x.shape[1:-1]), block.grid, block.attention
    out = torch.empty_like(x)
    for tokens in windows_of(sides, grid.window, grid.shifted, rule):
        places = [tuple(p for p, _ in token) for token in tokens]
        real = [all(i < s for i, s in zip(p, sides, strict=True)) for p in places]
        values = torch.stack(
            [
                x[(slice(None), *p)] if is_real else torch.zeros_like(x[:, 0, 0, 0])
                for p, is_real in zip(places, real, strict=True)
            ],
            1,
        )
        allowed = torch.tensor([[sees(a, b, sides, rule) for b in tokens] for a in tokens])
        mixed = attention_by_definition(layer, values, allowed)
        for i, (place, is_real) in enumerate(zip(places, real, strict=True)):
            if is_real:
                out[(slice(None), *place)] = mixed[:, i]
    return out


def attention_by_definition(layer: WindowAttention, values: Tensor, allowed: Tensor) -> Tensor:
    """One window of each clip (B, n, C), where token i attends to the tokens j with `allowed[i, j]`.

    The bias of a pair is looked up by the numbers of its tokens in the whole window.
    """
    n = values.shape[1]
    q, k, v = layer.project(values).view(*values.shape[:2], 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    if isinstance(layer, CosineAttention):
        q, k = (t / t.norm(dim=-1, keepdim=True).clamp_min(1e-12) for t in (q, k))  # keys of zeros are 0
        logits = q @ k.mT * layer.logit_scale.exp()
    else:
        logits = q @ k.mT / math.sqrt(q.shape[-1])
    index = relative_index(layer.position_bias.window)
    table = layer.position_bias.table()
    bias = torch.stack([torch.stack([table[index[i, j]] for j in range(n)]) for i in range(n)])
    weights = (logits + bias.permute(2, 0, 1)).exp() * allowed
    return layer.proj(((weights / weights.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2))


KINDS = {"swin": {}, "v2": V2, "log_cpb": {"position_bias": "log_cpb"}}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [(4, 4, 4), (3, 5, 4), (1, 2, 5)], ids=str)
def test_blocks_equal_plain_loops(kind: str, rule: str, sides: Sides, request: pytest.FixtureRequest) -> None:
    """Plain and shifted, outputs and gradients of the map and of all weights."""
    request.getfixturevalue("cosine_in_double")
    config = small_swin(
        frames=8, window_frames=2, window_size=3, window_padding=rule, depths=(2,), num_heads=(2,)
    )
    model = randomize(build_model(replace(config, **KINDS[kind])).double(), std=0.3)
    x = randn(2, *sides, 8, seed=1, dtype=torch.float64).requires_grad_()
    cotangent = randn(2, *sides, 8, seed=4, dtype=torch.float64)
    for block in model.layers[0].blocks:
        got, expected = block.mix_windows(x), mixed_by_loops(block, x, rule)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        inputs = [x, *block.attention.parameters()]
        for a, b in zip(
            torch.autograd.grad(got, inputs, cotangent),
            torch.autograd.grad(expected, inputs, cotangent),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


# Position bias.


def test_rows_of_the_table() -> None:
    """((dd + 7) * 13 + dh + 6) * 13 + dw + 6 of 15 * 13 * 13 rows; no offset is the middle one, 1267."""
    index = relative_index((8, 7, 7))
    assert len(TableBias((8, 7, 7), 1).table()) == 2535
    assert (index.diagonal() == 1267).all()
    # from token (7, 6, 6) to (0, 0, 0) all offsets are the largest
    assert (index[391, 0], index[0, 391]) == (2534, 0)
    # from (1, 2, 3), token 66, to (4, 0, 5), token 201: (-3, 2, -2)
    assert index[66, 201] == ((-3 + 7) * 13 + 2 + 6) * 13 - 2 + 6


@pytest.mark.parametrize("shifted", [False, True])
def test_a_shorter_window_has_the_right_offsets(shifted: bool) -> None:
    """A clip of 4 times in windows of 8 has the biases of windows of 4 with the middle 7 of 15 planes."""
    config = small_swin(window_padding="fitted", window_size=3, frames=16, num_heads=(2, 2))
    long, short = (
        build_model(replace(config, window_frames=n)).double().layers[0].blocks[int(shifted)] for n in (8, 4)
    )
    randomize(long)
    own, weights = short.attention.state_dict(), long.attention.state_dict()
    name = "position_bias.relative_position_bias_table"
    planes = weights[name].view(15, 25, 2)[4:11].flatten(0, 1)
    short.attention.load_state_dict({**own, **weights, name: planes})
    x = randn(1, 4, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(long.mix_windows(x), short.mix_windows(x), rtol=1e-12, atol=1e-12)


def test_a_lower_window_has_the_first_rows_of_the_index() -> None:
    """A map of 1 x 2 x 2 in windows of 1 x 2 x 3: token 2, at (0, 1, 0), counts as (0, 0, 2) of the window.

    Its offset to token 0 is therefore (0, 0, 2), row (0 * 3 + 0 + 1) * 5 + 2 + 2 = 9, where (0, 1, 0) has 12.
    """
    layer = WindowAttention(1, 1, TableBias((1, 2, 3), 1), qkv_bias=False)
    with torch.no_grad():
        layer.position_bias.relative_position_bias_table[9] = math.log(3.0)
        layer.qkv.weight.copy_(torch.tensor([[0.0], [0.0], [1.0]]))
        layer.proj.weight.fill_(1.0)
        layer.proj.bias.zero_()
    grid = WindowGrid(window=(1, 2, 3), shifted=False, padding="fitted")
    x = torch.tensor([8.0, 2.0, 2.0, 2.0]).view(1, 1, 2, 2, 1)
    y = layer(grid.cut(x))[0, :, 0]
    # token 2 weighs token 0 three times: (3 * 8 + 2 + 2 + 2) / 6 = 5; the others give each the same: 14 / 4
    torch.testing.assert_close(y, torch.tensor([3.5, 3.5, 5.0, 3.5]))


def test_log_coordinates_of_three_axes() -> None:
    """Each axis by itself: of a window of 3, the offset 1 is log2(1 + 4) / 3, the offset 2 is log2(9) / 3."""
    coordinates = log_coordinates((1, 2, 3))
    assert coordinates.shape == (1 * 3 * 5, 3)
    one, end = math.log2(5) / 3, math.log2(9) / 3
    assert coordinates[0].tolist() == pytest.approx([0, -end, -end])
    assert coordinates[6].tolist() == pytest.approx([0, 0, -one])
    assert coordinates[14].tolist() == pytest.approx([0, end, end])
    assert LogCpbBias((1, 2, 3), 2, sigmoid=True).cpb_mlp[0].weight.shape == (512, 3)
    # relative to weights of longer windows in time
    learned = log_coordinates((3, 1, 1), (5, 1, 1))
    assert learned[:, 0].tolist() == pytest.approx(
        [-math.log2(5) / 3, -math.log2(3) / 3, 0, *[math.log2(3) / 3, math.log2(5) / 3]]
    )


# Patches.


def test_patches_of_clips() -> None:
    """A product a patch; 3 frames of 5 x 7 pixels are filled up with zeros at their ends to 4 x 8 x 8."""
    layer = PatchEmbed((2, 4, 4), 3, 6).double()
    clips = randn(2, 3, 3, 5, 7, dtype=torch.float64)
    full = torch.zeros(2, 3, 4, 8, 8, dtype=torch.float64)
    full[:, :, :3, :5, :7] = clips
    y = layer(clips)
    assert y.shape == (2, 2, 2, 2, 6)
    for t, r, c in itertools.product(range(2), repeat=3):
        patch = full[:, :, 2 * t : 2 * t + 2, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].flatten(1)
        expected = patch @ layer.proj.weight.flatten(1).T + layer.proj.bias
        torch.testing.assert_close(y[:, t, r, c], layer.norm(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("post_norm", [False, True])
def test_merging_takes_each_time_by_itself(post_norm: bool) -> None:
    layer = PatchMerging(2, post_norm=post_norm)
    x = randn(2, 5, 3, 4, 2)
    merged = layer(x)
    assert merged.shape == (2, 5, 2, 2, 4)
    torch.testing.assert_close(merged, torch.stack([layer(x[:, t]) for t in range(5)], 1))
