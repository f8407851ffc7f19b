"""Attention as a GPU runs it, counted on shapes: bytes and operations worked by hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from launcher.plan.base.shapes import on_shapes
from launcher.plan.base.trace import Trace, TracedOp, trace
from launcher.plan.base.tracker import LiveBytes
from swin_moe.backbone.attention import WindowAttention, fused_attention
from swin_moe.backbone.position_bias import TableBias

# 2 images of 4 windows of 9 tokens; 8 channels, 2 heads of 4
IMAGES, WINDOWS, N, C, H = 2, 4, 9, 8, 2
TOKENS = IMAGES * WINDOWS * N * C  # numbers in a map: 576
ROWS = IMAGES * WINDOWS * H * 32  # sums of rows, of which torch keeps a multiple of 32 a window and head
PADDED = WINDOWS * H * N * 16  # the bias and the mask of an image's windows in rows of 16
SCORES = IMAGES * WINDOWS * H * N * N
SEED = 2 * 8  # of dropout, which the kernel returns


def kept_bytes(dtype: torch.dtype, attention_chunk: int = 0) -> int:
    """What is alive after a forward pass, its answer included, without input, mask and parameters."""
    with on_shapes("cuda"):
        layer = WindowAttention(C, H, TableBias((3, 3), H), attention_chunk=attention_chunk)
        layer = layer.to("meta").to(dtype)  # the index is a constant made on the CPU
        x = torch.empty(IMAGES * WINDOWS, N, C, dtype=dtype, requires_grad=True)
        mask, tracker = torch.empty(WINDOWS, N, N), LiveBytes()
        for tensor in (x, mask, *layer.parameters(), *layer.buffers()):
            tracker.ignore(tensor)
        with tracker:
            answer = layer(x, mask)
            found = tracker.live
            answer.sum().backward()
        assert layer.position_bias.relative_position_bias_table.grad is not None
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_keeps_no_scores(dtype: torch.dtype) -> None:
    # queries, keys and values in one copy; what the kernel returns; that in the order of tokens for the
    # projection; and the projection's answer
    numbers = 3 * TOKENS + TOKENS + TOKENS + TOKENS
    assert kept_bytes(dtype) == dtype.itemsize * (numbers + PADDED) + 4 * ROWS + SEED


class BiasGradients(TorchDispatchMode):
    """The bytes of every bias gradient that the fused attention writes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if "_efficient_attention_backward" in str(function):
            self.bytes.append(result[3].untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(("batch", "windows", "heads", "n"), [(2, 64, 3, 49), (3, 4, 6, 64), (1, 1, 2, 144)])
def test_the_gradient_of_a_bias_is_written_for_every_window(
    batch: int, windows: int, heads: int, n: int
) -> None:
    """Before autograd sums it: B S h n x n, rows padded to multiples of 16 elements, of 2 bytes."""
    like: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16, "requires_grad": True}
    q, k, v = (torch.empty(batch * windows, heads, n, 32, **like) for _ in range(3))
    bias = torch.empty(1, heads, n, n, **like)
    with on_shapes("cuda"), BiasGradients() as written:
        F.scaled_dot_product_attention(q, k, v, bias).sum().backward()
    assert written.bytes == [batch * windows * heads * n * -(-n // 16) * 16 * 2]
    assert bias.grad is not None
    assert bias.grad.shape == bias.shape


def test_windows_at_a_time_keep_less() -> None:
    # the answer and the bias; a second of two pieces recomputes from its part of the input and its mask
    assert kept_bytes(torch.float32, attention_chunk=4) == 4 * (TOKENS + H * N * N + 2 * WINDOWS * N * N)


def traced(n: int, grad: bool) -> Trace:
    """Attention of one head and 16 channels of each of 5 windows of n tokens an image, bias given."""
    bias = torch.nn.Parameter(torch.empty(5, 1, n, n, device="meta"))
    holder = torch.nn.ParameterList([bias])

    def run(batch: int) -> Tensor:
        q, k, v = (torch.empty(batch, 5, 1, n, 16, requires_grad=True) for _ in range(3))
        return fused_attention(q, k, v, bias, 1.0)

    with on_shapes("cuda"), torch.set_grad_enabled(grad):
        return trace(holder, run)


def test_fused_attention_is_one_product_without_scores() -> None:
    forward, backward = traced(64, grad=True).at(3)
    tokens, bias, scores = 3 * 5 * 64 * 16, 5 * 64 * 64, 3 * 5 * 64 * 64
    # q k^T and the product with v: 2 of (64, 16) by (16, 64); q, k, v and the answer move, and the bias once
    sums = 4 * 3 * 5 * 64
    assert forward == [TracedOp("product", 15, 64, 64, 2 * 16, 4 * tokens + bias, sums)]
    # q k^T again and four gradients; reads the answer's, q, k, v, the answer and the bias; writes those of q,
    # k and v, and of the bias for each image, which are added up
    assert backward[0] == TracedOp("product", 15, 64, 64, 5 * 16, 8 * tokens + bias + scores, sums)
    assert backward[1:2] == [TracedOp("sum", elements=scores + bias)]


def test_evaluation_writes_no_sums() -> None:
    (op,), _ = traced(64, grad=False).at(3)
    assert op.other_bytes == 0


def test_rows_of_a_bias_begin_at_multiples_of_eight() -> None:
    pad, op = traced(9, grad=False).at(3)[0]
    assert pad == TracedOp("copy", elements=5 * 9 * 9 + 5 * 9 * 16)
    assert (op.m, op.n, op.elements) == (9, 9, 4 * 3 * 5 * 9 * 16 + 5 * 9 * 9)
