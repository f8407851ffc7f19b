"""Weights that are no numbers are refused: one NaN makes every logit NaN."""

from collections.abc import Mapping

import torch
from torch import Tensor

from swin_moe.weights.errors import WeightsError, some


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors with NaN or infinity.

    Args:
        tensors: of any shape, by the names that the message shall use.

    Raises:
        WeightsError: with the names, and how many values of each are NaN and infinite.
    """
    bad = [f"{name} ({_counts(tensor)})" for name, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        tensors_hold = f"{len(bad)} tensors hold" if len(bad) > 1 else "1 tensor holds"
        raise WeightsError(
            f"{tensors_hold} values that are not finite: {some(bad)}; use an earlier checkpoint"
        )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # the smallest and the largest of 8-bit floats are not computed
        tensor = tensor.float()
    smallest, largest = torch.aminmax(tensor.detach())  # NaN where any value is
    return bool(smallest.isfinite() and largest.isfinite())


def _counts(tensor: Tensor) -> str:
    values = tensor.detach().float()
    return f"{int(values.isnan().sum())} NaN and {int(values.isinf().sum())} infinite of {values.numel()}"
