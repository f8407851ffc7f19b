"""Which tensors take the paths that are made for a GPU."""

from torch import Tensor


def on_gpu(x: Tensor) -> bool:
    """Whether launches and passes over memory are what costs: on every device but the CPU.

    Meta tensors, with which a GPU's memory is planned, are treated alike. A test may replace this function,
    to count on a CPU what a GPU would run.
    """
    return x.device.type != "cpu"
