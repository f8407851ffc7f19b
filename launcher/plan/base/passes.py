"""What calibration measures for each kind of pass over memory: a tensor -> an action that can be repeated."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _copy(x: Tensor) -> Callable[[], object]:
    y = torch.ones_like(x)
    return lambda: x + y


def _gelu_backward(x: Tensor) -> Callable[[], object]:
    y = torch.ones_like(x)
    return lambda: torch.ops.aten.gelu_backward(y, x)


def _softmax(x: Tensor) -> Callable[[], object]:
    scores = x.view(-1, 64)
    return lambda: torch.ops.aten._softmax(scores, -1, False)


def _norm(x: Tensor) -> Callable[[], object]:
    rows, weight = x.view(-1, 128), torch.ones(128, device=x.device)
    return lambda: torch.ops.aten.native_layer_norm(rows, [128], weight, weight, 1e-5)


def _norm_backward(x: Tensor) -> Callable[[], object]:
    rows, weight = x.view(-1, 128), torch.ones(128, device=x.device)
    _, mean, scale = torch.ops.aten.native_layer_norm(rows, [128], weight, weight, 1e-5)
    wanted = [True, True, True]
    return lambda: torch.ops.aten.native_layer_norm_backward(
        rows, rows, [128], mean, scale, weight, weight, wanted
    )


def _sum(x: Tensor) -> Callable[[], object]:
    rows = x.view(-1, 128)
    return lambda: rows.sum(0)


def _index(x: Tensor) -> Callable[[], object]:
    rows = x.view(-1, 128)
    order = torch.randperm(len(rows), device=x.device)
    return lambda: rows.index_select(0, order)


def _integer(x: Tensor) -> Callable[[], object]:
    numbers = torch.arange(x.numel(), device=x.device)
    return lambda: (numbers * 0x2545F491) ^ numbers


def _sort(x: Tensor) -> Callable[[], object]:
    values = torch.rand(x.numel(), device=x.device)
    return lambda: values.sort(stable=True)


def update(x: Tensor) -> Callable[[], object]:
    """An AdamW step of one parameter."""
    parameter = torch.nn.Parameter(torch.randn_like(x))
    optimizer = torch.optim.AdamW([parameter], lr=1e-6, fused=True)
    parameter.grad = torch.ones_like(x)
    return optimizer.step


PASSES: dict[str, Callable[[Tensor], Callable[[], object]]] = {
    "copy": _copy,
    "gelu": lambda x: lambda: F.gelu(x),
    "gelu_backward": _gelu_backward,
    "softmax": _softmax,
    "norm": _norm,
    "norm_backward": _norm_backward,
    "sum": _sum,
    "index": _index,
    "integer": _integer,
    "sort": _sort,
    "update": update,
}
