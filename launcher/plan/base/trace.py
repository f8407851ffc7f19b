"""What a piece of a model does, operation by operation, forward and backward, without doing it.

The piece runs on shapes alone (`shapes.py`) for two batches; all sizes are linear in the batch, so that any
other batch follows. What is counted is what eager PyTorch would launch: products by their shapes, and passes
over memory by the bytes that they read and write. A GPU's fused attention is one product, in the backward
pass another, that reads and writes no scores.

Legend: an operation multiplies `batch` times (m, k) by (k, n), or moves bytes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

BATCHES = 2, 3  # not 1, for which reductions over the batch vanish
KINDS = {  # what a pass costs beside its bytes differs by these; all else is a "copy"
    "gelu": "gelu",
    "gelu_backward": "gelu_backward",
    "erf": "gelu",
    "_softmax": "softmax",
    "_softmax_backward_data": "softmax",
    "_log_softmax": "softmax",
    "_log_softmax_backward_data": "softmax",
    "native_layer_norm": "norm",
    "native_layer_norm_backward": "norm_backward",
    "sort": "sort",
    "topk": "sort",
    "index": "index",
    "index_select": "index",
    "gather": "index",
    "index_put": "index",
    "scatter_add_": "index",
    "sum": "sum",
    "mean": "sum",
}
FUSED = {  # products of n x n by d in the fused attention: name -> forward 2; backward makes the scores again
    "_scaled_dot_product_efficient_attention": 2,
    "_scaled_dot_product_efficient_attention_backward": 5,
}
# views, and what allocates and no more
# fmt: off
FREE = frozenset((
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "split",
    "split_with_sizes", "unbind", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "empty",
    "empty_like", "new_empty", "device", "scalar_tensor", "promote_types", "_reshape_alias",
    "unfold", "view_as_real",
))
# fmt: on


class TracedOp(NamedTuple):
    """One operation; sizes may be fractions where an expectation is taken."""

    kind: str  # product, or a kind of pass
    batch: float = 0.0
    m: float = 0.0
    n: float = 0.0
    k: float = 0.0
    elements: float = 0.0  # floating point numbers read and written
    other_bytes: float = 0.0  # bytes of what does not depend on the precision, such as integers
    launches: float = 1.0

    @property
    def multiply_adds(self) -> float:
        """Of a product."""
        return self.batch * self.m * self.n * self.k

    def times(self, count: float) -> "TracedOp":
        """So many of this operation, as one line."""
        grow = "batch", "elements", "other_bytes", "launches"
        return self._replace(**{name: getattr(self, name) * count for name in grow})


class Trace(NamedTuple):
    """The operations of a piece at two batches."""

    forward: tuple[tuple[TracedOp, TracedOp], ...]
    backward: tuple[tuple[TracedOp, TracedOp], ...]

    def at(self, batch: float) -> tuple[list[TracedOp], list[TracedOp]]:
        """Forward and backward of any batch."""
        return _scaled(self.forward, batch), _scaled(self.backward, batch)


def trace(piece: nn.Module, run: Callable[[int], Tensor]) -> Trace:
    """Record a piece; within `on_shapes`.

    Args:
        piece: whose parameters get gradients, without those of an earlier pass.
        run: called with a batch; makes its input, calls the piece and returns its output.
    """
    both = [_record(piece, run, batch) for batch in BATCHES]
    halves = [tuple(zip(*half, strict=True)) for half in zip(*both, strict=True)]
    return Trace(*halves)


def record(action: Callable[[], object]) -> list[TracedOp]:
    """The operations of anything that is really done."""
    with _Recorder() as recorder:
        action()
    return recorder.ops


def _record(
    piece: nn.Module, run: Callable[[int], Tensor], batch: int
) -> tuple[list[TracedOp], list[TracedOp]]:
    piece.zero_grad(set_to_none=True)
    with _Recorder() as recorder:
        out = run(batch)
        forward, recorder.ops = recorder.ops, []
        if out.requires_grad:
            out.backward(torch.empty_like(out))
    return forward, recorder.ops


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[TracedOp] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "aten" and name not in FREE:
            self.ops += _ops(name, list(_tensors(args)), list(_tensors((out,))), args)
        return out


def _ops(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], args: Any) -> list[TracedOp]:
    """A call as operations: products by shape, anything else by its bytes."""
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        left, right = inputs[-2:]
        batch = left.shape[0] if left.dim() == 3 else 1
        return [_product(batch, left.shape[-2], right.shape[-1], left.shape[-1])]
    if name == "convolution":
        return [_convolution(outputs[0], inputs[1])]
    if name == "convolution_backward":
        wanted = sum(args[-1][:2])  # of input and weight
        return [_convolution(inputs[0], inputs[2])] * wanted
    if name in FUSED:
        return [_fused(FUSED[name], inputs, outputs)]
    if not outputs or (outputs[0].numel() == 0 and not inputs):
        return []
    kind = KINDS.get(name, "copy")
    real, other = _moved([*inputs, *outputs])
    if name == "addcmul_":  # the weighted sums of local relations, a pass over memory that multiplies
        return [TracedOp(kind, 1, outputs[0].numel(), 1, 1, real, other)]
    if kind == "copy" and real == 0:
        kind = "integer"
    return [TracedOp(kind, elements=real, other_bytes=other)]


def _product(batch: float, m: float, n: float, k: float) -> TracedOp:
    """The products and what they read and write."""
    return TracedOp("product", batch, m, n, k, elements=batch * (m * k + k * n + m * n))


def _fused(products: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> TracedOp:
    """Fused attention as one product: what comes and goes, and 4 bytes for the log of a row's sum.

    The exponentials are not counted. Forward (q, k, v, bias) -> (out, logsumexp, seed, offset); backward
    (gradient, q, k, v, bias, out, logsumexp, seed, offset) -> gradients of the first four, where that of the
    bias is as large as the scores.
    """
    forward = products == 2
    q, k = inputs[:2] if forward else inputs[1:3]
    sums = outputs[1] if forward else inputs[6]
    real, _ = _moved([*inputs[:4], outputs[0]] if forward else [*inputs[:6], *outputs])
    batch, heads, n, d = q.shape
    return TracedOp("product", batch * heads, n, k.shape[2], products * d, real, 4 * sums.numel())


def _convolution(out: Tensor, weight: Tensor) -> TracedOp:
    """As a product: (B, O, h, w) of (O, I, p, p) -> (B h w, I p p) by (I p p, O)."""
    rows = out.shape[0] * out.shape[2:].numel()
    return _product(1, rows, weight.shape[0], weight.shape[1:].numel())


def _moved(tensors: Iterable[Tensor]) -> tuple[float, float]:
    """Numbers of floating point, and bytes of anything else, in tensors; what is expanded counts once."""
    real = other = 0.0
    for tensor in tensors:
        count = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            count *= size if stride else 1
        if tensor.is_floating_point():
            real += count
        else:
            other += count * tensor.element_size()
    return real, other


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _scaled(pairs: Sequence[tuple[TracedOp, TracedOp]], batch: float) -> list[TracedOp]:
    """Each field on the line through its values at the two batches."""
    low, high = BATCHES
    share = (batch - low) / (high - low)
    return [
        TracedOp(a[0], *(x + share * (y - x) for x, y in zip(a[1:], b[1:], strict=True))) for a, b in pairs
    ]
