"""All experts' MLPs on rows sorted by expert: two ways to the same numbers, by device and dtype.

Dropout masks pre-activations (`mask_preactivations_`): value and derivative of a dropped hidden element are
then zero. The factor 1 / (1 - rate) of the others is part of the products. So dropout saves nothing for
backward, and backward draws nothing.

Legend: M rows, L experts, C channels, H hidden channels here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from swin_moe.random.keyed import mask_preactivations_

ActivationName = Literal["gelu", "swiglu"]


class Activation(NamedTuple):
    """Of pre-activations, (M, H) each; the last of them takes the drop marks."""

    value: Callable[[Sequence[Tensor], Tensor | None], Tensor]  # into its second argument, if any
    backward: Callable[[Tensor, Sequence[Tensor]], list[Tensor]]  # uses up its first argument


def _gelu(inputs: Sequence[Tensor], out: Tensor | None) -> Tensor:
    return F.gelu(inputs[0]) if out is None else torch.ops.aten.gelu.out(inputs[0], out=out)


def _gelu_backward(grad: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.ops.aten.gelu_backward.grad_input(grad, inputs[0], grad_input=grad)]


def _swiglu(inputs: Sequence[Tensor], out: Tensor | None) -> Tensor:
    """Shazeer 2020, "GLU Variants Improve Transformer", equation 6, with biases."""
    x, gate = inputs
    return torch.mul(F.silu(gate), x, out=out)


def _swiglu_backward(grad: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    x, gate = inputs
    by_x = F.silu(gate).mul_(grad)
    return [by_x, torch.ops.aten.silu_backward.grad_input(grad.mul_(x), gate, grad_input=grad)]


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(_gelu, _gelu_backward),
    "swiglu": Activation(_swiglu, _swiglu_backward),
}


@dataclass(frozen=True, kw_only=True)
class ExpertCall:
    """One pass through the experts, besides its tensors.

    Args:
        counts: rows of each expert, on the host or (L,) on the device; further rows are the last expert's.
        activation: between the layers.
        rate: of the dropout after it; 0 outside of training.
        hidden: columns of the unsliced hidden dim that are here.
        outputs: columns of the output to which fc2's bias here is added.
        recompute: keep pre-activations alone for backward.
        backward: whether there will be one.
    """

    counts: list[int] | Tensor
    activation: Activation
    rate: float
    hidden: range
    outputs: range
    recompute: bool
    backward: bool

    @property
    def scale(self) -> float:
        """What hidden elements that are not dropped are multiplied by."""
        return 1.0 / (1.0 - self.rate)

    def sizes(self, rows: int) -> list[int]:
        """Of so many rows, those of each expert; waits for the device if the counts are there."""
        counts = list(self.counts) if isinstance(self.counts, list) else self.counts.tolist()
        return [*counts[:-1], rows - sum(counts[:-1])]

    def ends(self, rows: Tensor) -> Tensor:
        """Where the rows of each expert end: (L,) int32 on the device of the rows (M, C)."""
        counts = self.counts if isinstance(self.counts, Tensor) else torch.tensor(self.counts)
        ends = counts.cumsum(0, dtype=torch.int32).to(rows.device, non_blocking=True)
        ends[-1:].fill_(len(rows))
        return ends

    def biased(self, rows: Tensor) -> Tensor:
        """Of answers (M, C), the columns that have fc2's bias here."""
        return rows[:, self.outputs.start : self.outputs.stop]

    def drop(self, inputs: Sequence[Tensor], keys: Tensor | None) -> None:
        """Mark what dropout drops, by the keys of the rows (M,); None: nothing."""
        if keys is not None:
            mask_preactivations_(inputs[-1], keys, self.rate, start=self.hidden.start)


class _Weights:
    """Weights by their places: first layers (x and, of swiglu, the gate), then fc2, maybe without a bias."""

    def __init__(self, weights: Sequence[Any]) -> None:
        last = 2 if len(weights) < 5 else 4
        self.first: list[tuple[Any, Any]] = list(zip(weights[:last:2], weights[1:last:2], strict=True))
        self.fc2 = weights[last]
        self.fc2_bias = weights[last + 1] if len(weights) > last + 1 else None


class _Loop(torch.autograd.Function):
    """One expert after the other, from its rows to its answers while they are in the cache.

    Each product is written straight into its place: under autograd weight[e] would allocate a gradient of
    (L, ...) for each expert. An expert without rows has empty products, whose weight gradients are zeros.
    """

    @staticmethod
    def forward(ctx: Any, call: ExpertCall, rows: Tensor, keys: Tensor | None, *weights: Tensor) -> Tensor:
        w, out, sizes = _Weights(weights), torch.empty_like(rows), call.sizes(len(rows))
        wanted = len(w.first) + (not call.recompute) if call.backward else 0
        kept = [rows.new_empty(len(rows), len(call.hidden)) for _ in range(wanted)]
        pieces = (_split(x, sizes) for x in (rows, keys, out, *kept))
        for e, (x, k, y, *into) in enumerate(zip(*pieces, strict=True)):
            into += [None] * (len(w.first) + 1 - wanted)
            inputs = [torch.addmm(b[e], x, a[e], out=o) for (a, b), o in zip(w.first, into, strict=False)]
            call.drop(inputs, k)
            hidden = call.activation.value(inputs, into[-1])
            torch.addmm(y, hidden, w.fc2[e], beta=0, alpha=call.scale, out=y)
            if w.fc2_bias is not None:
                call.biased(y).add_(w.fc2_bias[e])
        ctx.call, ctx.sizes = call, sizes
        ctx.save_for_backward(rows, *weights, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call: ExpertCall = ctx.call
        needed = ctx.needs_input_grad[3:]
        rows, *rest = ctx.saved_tensors
        weights, kept = rest[: len(needed)], rest[len(needed) :]
        grads = [torch.empty_like(x) if need else None for x, need in zip(weights, needed, strict=True)]
        grad_rows = torch.empty_like(rows)
        w, dw = _Weights(weights), _Weights(grads)
        scratch = rows.new_empty(max(ctx.sizes), len(call.hidden))
        pieces = (_split(x, ctx.sizes) for x in (rows, grad.contiguous(), grad_rows, *kept))
        for e, (x, g, dx, *mine) in enumerate(zip(*pieces, strict=True)):
            inputs = mine[: len(w.first)]
            hidden = call.activation.value(inputs, None) if call.recompute else mine[-1]
            _product(hidden.t(), g, dw.fc2, e, scale=call.scale)
            _sum(call.biased(g), dw.fc2_bias, e)
            by_hidden = torch.addmm(hidden, g, w.fc2[e].t(), beta=0, alpha=call.scale, out=scratch[: len(x)])
            for i, by_input in enumerate(call.activation.backward(by_hidden, inputs)):
                _product(x.t(), by_input, dw.first[i][0], e)
                _sum(by_input, dw.first[i][1], e)
                dx.addmm_(by_input, w.first[i][0][e].t(), beta=min(i, 1))
        return None, grad_rows, None, *grads


def _split(rows: Tensor | None, sizes: list[int]) -> Sequence[Any]:
    """The rows of each expert."""
    return [None] * len(sizes) if rows is None else rows.split(sizes)


def _product(a: Tensor, b: Tensor, out: Tensor | None, e: int, scale: float = 1.0) -> None:
    """out[e] = scale a b, where that gradient is wanted."""
    if out is not None:
        out[e].addmm_(a, b, beta=0, alpha=scale)


def _sum(rows: Tensor, out: Tensor | None, e: int) -> None:
    """out[e] = the sum of the rows, where that gradient is wanted."""
    if out is not None:
        torch.sum(rows, 0, out=out[e])


class _ClearEmpty(torch.autograd.Function):
    """A weight (L, ...), whose gradient is zero for experts without rows, whatever a product wrote there."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(ends)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ends,) = ctx.saved_tensors
        empty = ends.diff(prepend=ends.new_zeros(1)) == 0
        return grad.masked_fill(empty.view(-1, *[1] * (grad.dim() - 1)), 0), None


class _AddBias(torch.autograd.Function):
    """Add each expert's bias to columns of its rows, in place, by index: no number of experts adds a launch.

    The gradient of the biases is a grouped product with a row of ones, which sums in fp32 in a fixed order.
    The gradient of the rows is handed on dense: grouped_mm refuses the expanded one of a sum.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, bias: Tensor | None, expert: Tensor, ends: Tensor, columns: range
    ) -> Tensor:
        ctx.save_for_backward(ends)
        ctx.columns, ctx.has_bias = columns, bias is not None
        ctx.mark_dirty(rows)
        if bias is not None:
            rows[:, columns.start : columns.stop].add_(bias.index_select(0, expert))
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ends,), columns, grad = ctx.saved_tensors, ctx.columns, grad.contiguous()
        sums = None
        if ctx.has_bias and ctx.needs_input_grad[1]:
            ones = grad.new_ones(len(grad), 8).t()  # eight rows, because a product takes whole 16 bytes
            sums = F.grouped_mm(ones, grad, offs=ends)[:, 0, columns.start : columns.stop]
        return grad, sums, None, None, None


class _Activate(torch.autograd.Function):
    """The hidden rows of all experts at once; dropout marks the last of `inputs` in place."""

    @staticmethod
    def forward(ctx: Any, call: ExpertCall, *inputs: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(*inputs)
        return call.activation.value(inputs, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.call.activation.backward(grad, ctx.saved_tensors)


def loop(call: ExpertCall, rows: Tensor, keys: Tensor | None, weights: Sequence[Tensor]) -> Tensor:
    """One GEMM an expert and layer, on any device, in any precision.

    Args:
        call: of the pass.
        rows: (M, C), sorted by expert.
        keys: (M,) of the rows at this site, or None where nothing is dropped.
        weights: as ExpertMLP.weights.

    Returns:
        (M, C).
    """
    return _Loop.apply(call, rows, keys, *weights)


def grouped(call: ExpertCall, rows: Tensor, keys: Tensor | None, weights: Sequence[Tensor]) -> Tensor:
    """The same with one grouped GEMM a layer for all experts."""
    ends = call.ends(rows)
    if writes_garbage_for_empty(rows):
        weights = [_ClearEmpty.apply(weight, ends) for weight in weights]
    w = _Weights(weights)
    row = torch.arange(len(rows), device=rows.device, dtype=ends.dtype)
    expert = torch.searchsorted(ends, row, right=True, out_int32=True)  # (M,)
    inputs = [
        _AddBias.apply(F.grouped_mm(rows, weight, offs=ends), bias, expert, ends, range(len(call.hidden)))
        for weight, bias in w.first
    ]
    call.drop([x.detach() for x in inputs], keys)

    def last_layer(*inputs: Tensor) -> Tensor:
        out = F.grouped_mm(_Activate.apply(call, *inputs), w.fc2, offs=ends)
        out = out if call.scale == 1.0 else out * call.scale
        return _AddBias.apply(out, w.fc2_bias, expert, ends, call.outputs)

    if call.recompute and call.backward:
        return checkpoint(last_layer, *inputs, use_reentrant=False, preserve_rng_state=False)
    return last_layer(*inputs)


def has_grouped_products(rows: Tensor, hidden: int) -> bool:
    """Whether `grouped` is the fast way: bf16 on sm90 or sm100, where rows are whole 16 bytes.

    On sm120 torch computes grouped products one group after the other, and waits for the ends first.
    """
    return (
        rows.is_cuda
        and rows.dtype == torch.bfloat16
        and len(rows) > 0
        and rows.shape[1] % 8 == hidden % 8 == 0
        and torch.cuda.get_device_capability(rows.device)[0] in (9, 10)
    )


def writes_garbage_for_empty(rows: Tensor) -> bool:
    """Whether grouped weight gradients of groups without rows are whatever memory held: on sm100 and sm103.

    Reported as pytorch issues 172439 and 193633, which are open at torch 2.14.
    """
    return rows.is_cuda and torch.cuda.get_device_capability(rows.device)[0] == 10
