"""Between host and device: sends that do not wait, and reads that do, which the watch knows as waits."""

import torch
from torch import Tensor


def send(host: Tensor, device: torch.device) -> Tensor:
    """A copy of a small host tensor on `device`, without waiting for it."""
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def read(values: Tensor) -> Tensor:
    """A tensor on the host, once the device has computed it.

    With NCCL this is where a rank stands that waits for others: a collective only enters the device's queue.
    `parallel/watchdog/stack.py` therefore takes it for a collective.
    """
    return values.cpu()
