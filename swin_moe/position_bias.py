"""The relative position bias of window attention: a table, or a small network over log-spaced offsets.

Legend: n = w * w tokens a window, h heads.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


def relative_offsets(window: int) -> Tensor:
    """Row and column offset of every pair of tokens of a window: (n, n, 2) int64 in [-(w - 1), w - 1]."""
    axis = torch.arange(window, device="cpu")
    tokens = torch.cartesian_prod(axis, axis)  # (n, 2)
    return tokens[:, None, :] - tokens[None, :, :]


def relative_index(window: int) -> Tensor:
    """Row of the (2w - 1)^2 table of offsets for every pair of tokens: (n, n) int64."""
    offsets = relative_offsets(window) + window - 1
    return offsets[..., 0] * (2 * window - 1) + offsets[..., 1]


def log_coordinates(window: int, pretrained_window: int = 0) -> Tensor:
    """Log-spaced offsets in [-1, 1] as the bias network sees them: ((2w - 1)^2, 2) (Liu et al. 2022, eq. 4).

    Args:
        window: w.
        pretrained_window: of the weights, where it differs: offsets are relative to it, and may exceed 1.
    """
    axis = torch.arange(1 - window, window, dtype=torch.float32, device="cpu")
    axis = axis / max((pretrained_window or window) - 1, 1) * 8.0
    axis = torch.sign(axis) * torch.log2(axis.abs() + 1.0) / math.log2(8.0)
    return torch.cartesian_prod(axis, axis)


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

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        index = relative_index(window).to(torch.get_default_device())
        self.register_buffer("index", index, persistent=False)
        self._kept: _Kept | None = None

    def table(self) -> Tensor:
        """The bias of every offset: ((2w - 1)^2, h)."""
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
        device = self.index.device.type
        can_autocast = torch.amp.is_autocast_available(device)  # the meta device cannot
        autocast = can_autocast and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        source = (autocast, *((id(p), p._version) for p in parameters))
        if self._kept is None or self._kept.source != source:
            self._kept = _Kept(self._bias(), source, parameters)
        return self._kept.bias

    def _bias(self) -> Tensor:
        return self.table()[self.index].permute(2, 0, 1).contiguous()


class TableBias(PositionBias):
    """One learned number a head and offset (Liu et al. 2021, equation 4)."""

    def __init__(self, window: int, num_heads: int) -> None:
        super().__init__(window)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))

    def table(self) -> Tensor:
        """The bias of every offset: ((2w - 1)^2, h)."""
        return self.relative_position_bias_table


class LogCpbBias(PositionBias):
    """A small network over log-spaced offsets (Liu et al. 2022, equations 3 and 4).

    Args:
        window: w.
        num_heads: h.
        sigmoid: SwinV2 bounds the bias by 16 * sigmoid; Swin-MoE adds the network's output as it is.
        pretrained_window: see `log_coordinates`.
    """

    coordinates: Tensor

    def __init__(
        self, window: int, num_heads: int, *, sigmoid: bool, pretrained_window: int = 0, hidden: int = 512
    ) -> None:
        super().__init__(window)
        self.sigmoid, self.pretrained_window = sigmoid, pretrained_window
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, hidden), nn.ReLU(inplace=False), nn.Linear(hidden, num_heads, bias=False)
        )
        coordinates = log_coordinates(window, pretrained_window).to(torch.get_default_device())
        self.register_buffer("coordinates", coordinates, persistent=False)

    def reset_buffers(self) -> None:
        """Compute the constant buffers again, after a construction on the meta device."""
        super().reset_buffers()
        self.coordinates.copy_(log_coordinates(self.window, self.pretrained_window))

    def table(self) -> Tensor:
        """The bias of every offset: ((2w - 1)^2, h)."""
        table = self.cpb_mlp(self.coordinates.to(next(self.cpb_mlp.parameters()).dtype))
        return 16.0 * torch.sigmoid(table) if self.sigmoid else table
