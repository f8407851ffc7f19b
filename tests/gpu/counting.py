"""Launches, host reads and bytes of what runs on a GPU, counted on a CPU by dispatch.

A launch is one dispatched operator that is no view; an operator of several kernels (a sort, a scan) counts as
one, and so does one that a GPU fuses, as its attention. A host read is an operator, or a method of Tensor,
for which the host waits until the device has come that far.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from swin_moe import gpu

ROOT = Path(__file__).parent.parent.parent
VIEWS = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "transpose_", "t", "t_"),
    *("expand", "slice", "select", "split", "split_with_sizes", "unbind", "chunk", "narrow", "unfold"),
    *("unsqueeze", "unsqueeze_", "squeeze", "squeeze_", "as_strided", "diagonal", "view_as_real", "alias"),
    *("detach", "detach_", "lift_fresh", "set_", "resize_", "is_pinned", "record_stream", "promote_types"),
    *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "device"),
}
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount"}


class Count(TorchDispatchMode):
    """Counts while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.reads: Counter[tuple[str, str]] = Counter()  # by what and file:line
        self.bytes = 0  # read and written, as if nothing stayed in a cache

    @property
    def launches(self) -> int:
        """All operators that are no views."""
        return self.operators.total()

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = f(*args, **(kwargs or {}))
        name = f._schema.name.split("::")[1]
        if name in READS or (name == "repeat_interleave" and (kwargs or {}).get("output_size") is None):
            self.note_read(name)
        if name.startswith("index") and any(x.dtype == torch.bool for x in tree_leaves(args[1:]) if _is(x)):
            self.note_read(f"{name}[bool]")
        if name not in VIEWS:
            self.operators[name] += 1
            self.bytes += sum(x.nbytes for x in tree_leaves((args, kwargs, out)) if _is(x))
        return out

    def note_read(self, what: str) -> None:
        """Count a read where the project's innermost line is."""
        own = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT))]
        own = [
            frame
            for frame in own
            if "/tests/" not in frame.filename and "site-packages" not in frame.filename
        ]
        at = f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].name}" if own else "?"
        self.reads[what, at] += 1


class _Methods(TorchFunctionMode):
    """Sees the reads that are no operator."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(f, "__name__", "") == "tolist":
            self.count.note_read("tolist")
        return f(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Count]:
    """Count what runs inside."""
    count = Count()
    with _Methods(count), count:
        yield count


def _is(x: Any) -> bool:
    return isinstance(x, Tensor)


@pytest.fixture
def gpu_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the paths of a GPU on CPU tensors: its draws, grouped products and attention as one kernel."""
    monkeypatch.setattr(gpu, "on_gpu", lambda x: True)
    monkeypatch.setattr("swin_moe.moe.experts.has_grouped_products", lambda rows, hidden: len(rows) > 0)
    monkeypatch.setattr(F, "scaled_dot_product_attention", _attention)


def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, scale: float) -> Tensor:
    return _Attention.apply(q, k, v, attn_mask.expand(*q.shape[:-1], k.shape[-2]), scale)


class _Attention(torch.autograd.Function):
    """The memory-efficient kernel: one launch each way, and nothing of the size of the scores but dBias."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        ctx.save_for_backward(*inputs[:4])
        ctx.scale = inputs[4]
        return torch.ops.swin_moe_tests.attention(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = torch.ops.swin_moe_tests.attention_backward(grad, *ctx.saved_tensors, ctx.scale)
        return *found, None


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    out = ((q @ k.mT) * scale + bias).softmax(-1) @ v
    return out.transpose(1, 2).contiguous().transpose(1, 2)  # as the kernel lays it out


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights = ((q @ k.mT) * scale + bias).softmax(-1)
    by_weights = grad @ v.mT
    by_scores = weights * (by_weights - (weights * by_weights).sum(-1, keepdim=True))
    found = (by_scores @ k * scale, by_scores.mT @ q * scale, weights.mT @ grad)
    return *(x.transpose(1, 2).contiguous().transpose(1, 2) for x in found), by_scores


torch.library.custom_op("swin_moe_tests::attention", _forward, mutates_args=())
torch.library.custom_op("swin_moe_tests::attention_backward", _backward, mutates_args=())
torch.library.register_fake("swin_moe_tests::attention", _forward)
torch.library.register_fake("swin_moe_tests::attention_backward", _backward)
