"""Models whose parameters have a device and a shape, and no memory."""

import torch
from torch import nn


def place(model: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Give a model parameters and buffers of the FakeTensorMode that is entered, and its marks."""
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None:
                new = nn.Parameter(torch.empty(old.shape, device=device, dtype=dtype))
                for mark, value in vars(old).items():
                    setattr(new, mark, value)
                module._parameters[name] = new
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                kind = dtype if buffer.is_floating_point() else buffer.dtype
                module._buffers[name] = torch.empty(buffer.shape, device=device, dtype=kind)
