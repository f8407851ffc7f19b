"""Running a model on shapes alone, as a device would run it.

For a CPU tensors are fake (torch's FakeTensorMode) and say that they are on it; for a GPU they are on the
meta device, where everything takes the way of a GPU but attention: torch has no kernel to choose there and
makes plain products of it, so that `on_shapes` says which operator it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from launcher.plan.base.hardware import Device

Module = TypeVar("Module", bound=nn.Module)
ALIGNED = 8  # elements to which the kernel wants the rows of a bias: mem_eff_alignment in attention.cpp


@contextmanager
def on_shapes(device: Device) -> Iterator[None]:
    """Within it, what is made has a shape and no memory, and operators are those of the device.

    Not a TorchFunctionMode: torch turns one off within `backward`, where checkpointing computes again.
    """
    if device == "cpu":
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    else:
        with torch.device("meta"), torch.library._scoped_library("aten", "IMPL") as library:
            library.impl("scaled_dot_product_attention", _fused_attention, "AutogradMeta")
            yield


def placed(model: Module, device: Device) -> Module:
    """A model from the meta device as one for `on_shapes`; within it."""
    return model.to_empty(device="cpu") if device == "cpu" else model


def _fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention as torch runs it on a GPU (aten/src/ATen/native/transformers/attention.cpp).

    Assumed is the memory-efficient kernel, in every precision: of torch's fused kernels it alone takes a bias
    that learns, in fp32, bf16 and fp16 (transformers/cuda/sdp_utils.cpp), for heads of whole 16 bytes, as all
    of ours are. Teachers of transformers may have none. Backward is torch's own formula of the operator.
    """
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    bias = None if attn_mask is None else _aligned(attn_mask).expand(*q.shape[:3], k.shape[2])
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(q, k, v, bias, wanted, dropout_p, is_causal, scale=scale)[0]


def _aligned(bias: Tensor) -> Tensor:
    """A bias whose rows begin at multiples of 8 elements: itself, or a slice of a longer one.

    As `preprocess_mask` in attention.cpp has it. The longer one has the batch of the bias, not of queries.
    """
    if all(stride % ALIGNED == 0 for stride in bias.stride()[:-1]) and bias.stride(-1) == 1:
        return bias
    n = bias.shape[-1]
    return F.pad(bias, (0, ALIGNED - n % ALIGNED))[..., :n]
