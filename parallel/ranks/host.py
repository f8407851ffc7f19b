"""Copies between host and device: sends that do not wait, and reads that do, which the watchdog knows."""

import torch
from torch import Tensor


def send(host: Tensor, device: torch.device) -> Tensor:
    """A copy of a small host tensor on `device`, without waiting for it."""
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def read(values: Tensor) -> Tensor:
    """A tensor on the host, once the device has computed it.

    With NCCL a rank that waits for others waits here, because a collective only enters the device's queue.
    `parallel/watchdog/stack.py` therefore treats it as a collective.
    """
    return values.cpu()
