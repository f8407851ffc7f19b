"""The relative position bias of window attention: a table, or a small network over log-spaced offsets.

Legend: a window of k = 2 or 3 axes, (H, W) or (D, H, W), with n tokens and R offsets between them, which is
the product of 2 * side - 1 over its sides; h heads.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)


def relative_offsets(window: tuple[int, ...]) -> Tensor:
    """The offset along each axis of every pair of tokens of a window: (n, n, k) int64.

    Along a side of s tokens they lie in [-(s - 1), s - 1].
    """
    tokens = torch.cartesian_prod(*(torch.arange(side, device="cpu") for side in window))  # (n, k)
    return tokens[:, None, :] - tokens[None, :, :]


def relative_index(window: tuple[int, ...]) -> Tensor:
    """Row of the table of R offsets for every pair of tokens of a window: (n, n) int64."""
    index = torch.zeros((), dtype=torch.int64, device="cpu")
    for side, offsets in zip(window, relative_offsets(window).unbind(-1), strict=True):
        index = index * (2 * side - 1) + offsets + side - 1
    return index


def log_coordinates(window: tuple[int, ...], pretrained_window: tuple[int, ...] | None = None) -> Tensor:
    """Log-spaced offsets in [-1, 1] as the bias network sees them: (R, k) (Liu et al. 2022, eq. 4).

    Args:
        window: its sides.
        pretrained_window: of the weights, where it differs: offsets are relative to it, and may exceed 1.
    """
    learned = pretrained_window or window
    return torch.cartesian_prod(*(_log_axis(*pair) for pair in zip(window, learned, strict=True)))


def _log_axis(window: int, learned: int) -> Tensor:
    """The offsets along one side: (2 * window - 1,)."""
    axis = torch.arange(1 - window, window, dtype=torch.float32, device="cpu")
    axis = axis / max(learned - 1, 1) * 8.0
    return torch.sign(axis) * torch.log2(axis.abs() + 1.0) / math.log2(8.0)


class _Kept(NamedTuple):
    """A bias that was computed once, and what it followed from."""

    bias: Tensor
    source: tuple[object, ...]
    parameters: list[nn.Parameter]  # held, so that no other tensor gets their ids


class PositionBias(nn.Module):
    """The bias (h, n, n) of a window; in evaluation without gradients it is computed once and kept.

    The kept bias is dropped by `train`, by a change of device or precision, and where a parameter is another
    tensor or was written in place. Only a write through `.data` in evaluation is not seen: call `eval` then.
    """

    index: Tensor

    def __init__(self, window: tuple[int, ...]) -> None:
        super().__init__()
        self.window = window
        index = relative_index(window).to(torch.get_default_device())
        self.register_buffer("index", index, persistent=False)
        self._kept: _Kept | None = None

    def table(self) -> Tensor:
        """The bias of every offset: (R, h)."""
        raise NotImplementedError

    def reset_buffers(self) -> None:
        """Compute the constant buffers again, after a construction on the meta device."""
        self.index.copy_(relative_index(self.window))

    def train(self, mode: bool = True) -> "PositionBias":
        """Switch between training and evaluation."""
        self._kept = None
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        self._kept = None
        super()._apply(fn, recurse)
        self.reset_buffers()  # bf16 and back would leave rounded coordinates
        return self

    def forward(self) -> Tensor:
        """The bias (h, n, n)."""
        # A compiled graph would be guarded by the versions, and compiled again after every step.
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._bias()
        parameters = list(self.parameters())
        if any(p.is_inference() for p in parameters):  # their writes are not counted
            return self._bias()
        source = (_autocast_dtype(self.index.device.type), *((id(p), p._version) for p in parameters))
        if self._kept is None or self._kept.source != source:
            self._kept = _Kept(self._bias(), source, parameters)
        return self._kept.bias

    def _bias(self) -> Tensor:
        return self.table()[self.index].permute(2, 0, 1).contiguous()


def _autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of autocast, or None where it is off."""
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta has no autocast, and torch raises
        return None
    return torch.get_autocast_dtype(device)


class TableBias(PositionBias):
    """One learned number a head and offset (Liu et al. 2021, equation 4)."""

    def __init__(self, window: tuple[int, ...], num_heads: int) -> None:
        super().__init__(window)
        rows = math.prod(2 * side - 1 for side in window)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))

    def table(self) -> Tensor:
        """The bias of every offset: (R, h)."""
        return self.relative_position_bias_table


class LogCpbBias(PositionBias):
    """A small network over log-spaced offsets (Liu et al. 2022, equations 3 and 4).

    Args:
        window: its sides.
        num_heads: h.
        sigmoid: SwinV2 bounds the bias by 16 * sigmoid; Swin-MoE adds the network's output as it is.
        pretrained_window: see `log_coordinates`.
    """

    coordinates: Tensor

    def __init__(
        self,
        window: tuple[int, ...],
        num_heads: int,
        *,
        sigmoid: bool,
        pretrained_window: tuple[int, ...] | None = None,
        hidden: int = 512,
    ) -> None:
        super().__init__(window)
        self.sigmoid, self.pretrained_window = sigmoid, pretrained_window
        self.cpb_mlp = nn.Sequential(
            nn.Linear(len(window), hidden), nn.ReLU(inplace=False), nn.Linear(hidden, num_heads, bias=False)
        )
        coordinates = log_coordinates(window, pretrained_window).to(torch.get_default_device())
        self.register_buffer("coordinates", coordinates, persistent=False)

    def reset_buffers(self) -> None:
        """Compute the constant buffers again, after a construction on the meta device."""
        super().reset_buffers()
        self.coordinates.copy_(log_coordinates(self.window, self.pretrained_window))

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        if self.sigmoid and self.coordinates.dtype in HALF:
            self.coordinates = self.coordinates.float()
            self.reset_buffers()
        return self

    def table(self) -> Tensor:
        """The bias of every offset: (R, h).

        A bounded bias lies around 8, where numbers of 16 bits are 2^-5 (bf16) or 2^-7 (fp16) apart: at
        initial weights no difference between offsets would be left. In 16 bits it is therefore computed in
        fp32 and less its middle, 16 * sigmoid(x) - 8 = 8 * tanh(x / 2): softmax does not see a constant.
        """
        weights = list(self.cpb_mlp.parameters())
        device = self.index.device.type
        autocast = _autocast_dtype(device)
        dtype = autocast or weights[0].dtype
        if self.sigmoid and dtype in HALF:
            with torch.autocast(device, enabled=False) if autocast else nullcontext():
                w1, b1, w2 = (weight.float() for weight in weights)
                hidden = F.linear(self.coordinates.float(), w1, b1).relu()
                return (8.0 * torch.tanh(F.linear(hidden, w2) / 2)).to(dtype)
        table = self.cpb_mlp(self.coordinates.to(weights[0].dtype))
        return 16.0 * torch.sigmoid(table) if self.sigmoid else table
