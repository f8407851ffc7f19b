"""Window attention against plain loops over windows, heads and tokens.

Legend: B images, S windows an image, n tokens a window, h heads, C channels, d = C / h.
"""

import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe import gpu
from swin_moe.backbone.attention import WindowAttention
from swin_moe.backbone.position_bias import LogCpbBias, TableBias, relative_index, relative_offsets
from swin_moe.backbone.windows import WindowGrid

DIM, HEADS = 6, 3
Window = tuple[int, int]


def test_relative_offsets_by_hand() -> None:
    """Window 2 has the tokens (0, 0), (0, 1), (1, 0), (1, 1); the last one lies at (1, 1) from the first."""
    offsets = relative_offsets((2, 2))
    assert offsets[3].tolist() == [[1, 1], [1, 0], [0, 1], [0, 0]]
    assert offsets[1].tolist() == [[0, 1], [0, 0], [-1, 1], [-1, 0]]


def test_relative_index_by_hand() -> None:
    """Window 2: offsets (r, c) in -1..1, row 3 * (r + 1) + (c + 1) of the table; (0, 0) is row 4."""
    assert relative_index((2, 2)).tolist() == [
        [4, 3, 1, 0],  # (0, 0) sees (0, 0), (0, -1), (-1, 0), (-1, -1)
        [5, 4, 2, 1],  # (0, 1)
        [7, 6, 4, 3],  # (1, 0)
        [8, 7, 5, 4],  # (1, 1)
    ]


def test_relative_index_of_a_wide_window_by_hand() -> None:
    """Window 1 x 3 has the offsets -2..2 of one row; 2 x 3 has rows of 5 offsets, and (0, 0) is number 7."""
    assert relative_index((1, 3)).tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    assert relative_index((3, 1)).tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
    # the token (1, 2) is the last one; from the first, (0, 0), it lies at (1, 2): 5 * (1 + 1) + 2 + 2
    assert relative_index((2, 3))[5, 0] == 14
    assert relative_index((2, 3))[1, 3] == 3  # from (1, 0) to (0, 1): (-1, 1), 5 * 0 + 1 + 2
    assert relative_index((3, 2))[1, 2] == 5  # the same tokens, in rows of 3: 3 * (-1 + 2) + 1 + 1


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (7, 7), (2, 5), (5, 2), (1, 4)])
def test_relative_index_uses_the_whole_table(window: Window) -> None:
    index, (h, w) = relative_index(window), window
    assert index.shape == (h * w, h * w)
    assert index.unique().tolist() == list(range((2 * h - 1) * (2 * w - 1)))


def test_log_cpb_coordinates_by_hand() -> None:
    """Window 3: x becomes sign(x) log2(1 + 8 |x| / 2) / log2(8): log2(5) / 3 at 1, log2(9) / 3 at 2."""
    one, two = 2.321928094887362 / 3, 3.169925001442312 / 3
    axis = [-two, -one, 0.0, one, two]
    expected = torch.tensor([[row, column] for row in axis for column in axis])
    coordinates = LogCpbBias((3, 3), HEADS, sigmoid=False).coordinates
    torch.testing.assert_close(coordinates, expected, rtol=1e-6, atol=0)


def test_log_cpb_of_a_single_token_is_finite() -> None:
    """Window 1 has one offset, 0, and w - 1 = 0 must not divide it."""
    assert LogCpbBias((1, 1), HEADS, sigmoid=False).coordinates.tolist() == [[0.0, 0.0]]


def coordinate(offset: int, window: int) -> float:
    return math.copysign(math.log2(1 + 8 * abs(offset) / (window - 1)) / 3, offset) if offset else 0.0


def make_attention(position_bias: str, window: Window, *, qkv_bias: bool = True) -> WindowAttention:
    log_cpb = position_bias == "log_cpb"
    bias = LogCpbBias(window, HEADS, sigmoid=False) if log_cpb else TableBias(window, HEADS)
    layer = WindowAttention(DIM, HEADS, bias, qkv_bias=qkv_bias).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    if isinstance(layer.position_bias, LogCpbBias):
        # The buffer is fp32 in any model (checked above); a comparison to 1e-10 needs the exact numbers.
        rows, columns = ([coordinate(x, side) for x in range(1 - side, side)] for side in window)
        exact = [[row, column] for row in rows for column in columns]
        layer.position_bias.coordinates = torch.tensor(exact, dtype=torch.float64)
    return layer


def bias_between(layer: WindowAttention, head: int, i: int, j: int, window: Window) -> Tensor:
    """Of query i and key j, from their rows and columns."""
    h, w = window
    row, column = i // w - j // w, i % w - j % w
    bias = layer.position_bias
    if isinstance(bias, TableBias):
        place = (row + h - 1) * (2 * w - 1) + column + w - 1
        return bias.relative_position_bias_table[place, head]
    first, last = bias.cpb_mlp[0], bias.cpb_mlp[2]
    at = torch.tensor([coordinate(row, h), coordinate(column, w)], dtype=torch.float64)
    hidden = (first.weight * at).sum(1) + first.bias
    return (last.weight[head] * hidden * (hidden > 0)).sum()


def reference(layer: WindowAttention, x: Tensor, mask: Tensor | None, window: Window) -> Tensor:
    """softmax(q k / sqrt(d) + bias + mask) v, a window, a head and a query at a time."""
    d, n = DIM // HEADS, window[0] * window[1]
    biases = [
        [[bias_between(layer, head, i, j, window) for j in range(n)] for i in range(n)]
        for head in range(HEADS)
    ]
    outputs = []
    for number, tokens in enumerate(x):
        heads = []
        for head in range(HEADS):
            pick = [slice(part * DIM + head * d, part * DIM + (head + 1) * d) for part in range(3)]
            q, k, v = (tokens @ layer.qkv.weight[rows].T for rows in pick)
            if layer.qkv.bias is not None:
                q, k, v = (y + layer.qkv.bias[rows] for y, rows in zip((q, k, v), pick, strict=True))
            rows = []
            for i in range(len(tokens)):
                weights = []
                for j in range(len(tokens)):
                    hidden = mask is not None and mask[number % len(mask), i, j] != 0
                    logit = (q[i] * k[j]).sum() / math.sqrt(d) + biases[head][i][j]
                    weights.append(torch.zeros_like(logit) if hidden else logit.exp())
                rows.append(sum(w * v[j] for j, w in enumerate(weights)) / sum(weights))
            heads.append(torch.stack(rows))
        outputs.append(torch.cat(heads, dim=1) @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(outputs)


@pytest.mark.parametrize("position_bias", ["table", "log_cpb"])
@pytest.mark.parametrize(
    ("window", "sides", "shifted"),
    [((2, 2), (4, 4), False), ((2, 2), (4, 4), True), ((3, 3), (6, 6), True), ((3, 3), (3, 3), False)]
    + [((2, 3), (4, 6), True), ((3, 2), (3, 4), True), ((1, 4), (1, 8), True), ((2, 3), (2, 3), False)],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_attention_equals_plain_loops(
    monkeypatch: pytest.MonkeyPatch,
    position_bias: str,
    window: Window,
    sides: Window,
    shifted: bool,
    device: str,
) -> None:
    """Two images; the mask of a shifted map belongs to its windows, image after image.

    A GPU's way is run here; its kernels take tensors of four dims and a bias (1 or B, heads, n, n).
    """
    if device == "cuda":
        monkeypatch.setattr(gpu, "on_gpu", lambda x: True)
    with mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as fused:
        check_against_plain_loops(position_bias, window, sides, shifted)
    assert fused.called == (device == "cuda")
    for call in fused.call_args_list:
        assert [tensor.dim() for tensor in (*call.args, call.kwargs["attn_mask"])] == [4] * 4


def check_against_plain_loops(position_bias: str, window: Window, sides: Window, shifted: bool) -> None:
    layer = make_attention(position_bias, window)
    mask = WindowGrid(window=window, shifted=shifted).mask(*sides)
    assert (mask is not None) == shifted
    generator = torch.Generator().manual_seed(0)
    (height, width), (h, w) = sides, window
    shape = 2 * (height // h) * (width // w), h * w, DIM
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    y, expected = layer(x, mask), reference(layer, x, mask, window)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    got, wanted = torch.autograd.grad(y, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_attention_without_qkv_bias() -> None:
    layer = make_attention("table", (2, 2), qkv_bias=False)
    assert layer.qkv.bias is None
    x = torch.randn(2, 4, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), reference(layer, x, None, (2, 2)), rtol=1e-10, atol=1e-10)


def test_uniform_attention_by_hand() -> None:
    """With q = k = 0 and no bias every token gets the mean of the values it may see.

    v = x and proj = 1. Window 2, shift 1, 4 x 4 map: in window 1, tokens 0 and 2 see each other, and 1 and 3.
    """
    layer = WindowAttention(1, 1, TableBias((2, 2), 1))
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.tensor([[0.0], [0.0], [1.0]]))
        layer.qkv.bias.zero_()
        layer.proj.weight.fill_(1.0)
        layer.proj.bias.zero_()
    x = torch.tensor([1.0, 2.0, 5.0, 10.0]).view(1, 4, 1).expand(4, 4, 1)
    y = layer(x, WindowGrid(window=(2, 2), shifted=True).mask(4, 4))[..., 0]
    torch.testing.assert_close(y[0], torch.full((4,), 4.5))  # (1 + 2 + 5 + 10) / 4
    torch.testing.assert_close(y[1], torch.tensor([3.0, 6.0, 3.0, 6.0]))  # (1 + 5) / 2, (2 + 10) / 2
    torch.testing.assert_close(y[3], torch.tensor([1.0, 2.0, 5.0, 10.0]))  # each alone
