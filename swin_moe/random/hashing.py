"""The hashes behind all keyed draws: in torch's operators, and as one kernel each on a GPU.

int64 and int32 products wrap on every device alike, so both ways give the same bits. On a GPU a hash is an
operator of its own (`torch.ops.swin_moe`), which fake and meta tensors know too; it runs a Triton kernel
(triton_hashing.py) where Triton is there, and torch's operators elsewhere.

Legend: N rows, n elements a row.
"""

import importlib.util

import torch
from torch import Tensor

from parallel.counter_rng import mix64_tensor, shift_right
from swin_moe import gpu


def mix(z: Tensor) -> Tensor:
    """`mix64_tensor` of parallel/counter_rng.py: int64 of any shape."""
    return torch.ops.swin_moe.mix(z) if _as_kernel(z) else torch_mix(z)


def words(keys: Tensor, n: int, start: int) -> Tensor:
    """One random word an element: (N,) int64 keys -> (N, n) int32, elements start .. start + n of each row.

    The finaliser of murmur3 on 32 bits an element, with both halves of the key: six cheap passes, where
    splitmix64 would need 64-bit ones.
    """
    return torch.ops.swin_moe.words(keys, n, start) if _as_kernel(keys) else torch_words(keys, n, start)


def mask_(x: Tensor, keys: Tensor, bound: int, start: int) -> None:
    """Add half of the lowest number to every element of x (N, n) whose word is below `bound`, in place.

    On a CPU rows are taken as many at a time as stay in its cache; no step is a comparison, which is not
    vectorised together with a choice.
    """
    if _as_kernel(x):
        torch.ops.swin_moe.mask_(x, keys, bound, start)
        return
    rows = max(1, 2**17 // max(1, x.shape[1]))
    for piece, k in zip(x.split(rows), keys.split(rows), strict=True):
        torch_mask_(piece, k, bound, start)


def lowest(dtype: torch.dtype) -> float:
    """What `mask_` adds: half of the lowest number of a dtype."""
    return torch.finfo(dtype).min / 2


def _as_kernel(x: Tensor) -> bool:
    """Whether the hash is one operator; a compiler fuses torch's operators by itself."""
    return gpu.on_gpu(x) and not torch.compiler.is_compiling()


def torch_mix(z: Tensor) -> Tensor:
    """`mix` by torch's operators."""
    return mix64_tensor(z)


def torch_words(keys: Tensor, n: int, start: int) -> Tensor:
    """`words` by torch's operators."""
    low, high = keys.to(torch.int32), shift_right(keys, 32).to(torch.int32)  # .to keeps the low 32 bits
    column = torch.arange(start, start + n, device=keys.device, dtype=torch.int32)
    h = column * -1640531527 + low[:, None]  # (N, n)
    h ^= shift_right(h, 16)
    h *= -2048144789
    h ^= high[:, None]
    h ^= shift_right(h, 13)
    h *= -1028477387
    h ^= shift_right(h, 16)
    return h


def torch_mask_(x: Tensor, keys: Tensor, bound: int, start: int) -> None:
    """`mask_` by torch's operators, all rows at once."""
    dropped = torch_words(keys, x.shape[1], start).clamp_(max(bound - 1, -(2**31)), bound).sub_(bound)
    x.add_(dropped.to(x.dtype), alpha=-lowest(x.dtype))  # `dropped` is -1, or 0 where kept


_mix_op = torch.library.custom_op("swin_moe::mix", torch_mix, mutates_args=())
_words_op = torch.library.custom_op("swin_moe::words", torch_words, mutates_args=())
_mask_op = torch.library.custom_op("swin_moe::mask_", torch_mask_, mutates_args=("x",))
_mix_op.register_fake(torch.empty_like)
_words_op.register_fake(lambda keys, n, start: keys.new_empty((len(keys), n), dtype=torch.int32))
_mask_op.register_fake(lambda x, keys, bound, start: None)


if importlib.util.find_spec("triton"):  # it is imported by the first kernel

    @_mix_op.register_kernel("cuda")
    def _(z: Tensor) -> Tensor:
        from swin_moe.random import triton_hashing

        return triton_hashing.mix(z)

    @_words_op.register_kernel("cuda")
    def _(keys: Tensor, n: int, start: int) -> Tensor:
        from swin_moe.random import triton_hashing

        return triton_hashing.words(keys, n, start)

    @_mask_op.register_kernel("cuda")
    def _(x: Tensor, keys: Tensor, bound: int, start: int) -> None:
        from swin_moe.random import triton_hashing

        if x.dtype == torch.float64:  # the kernel computes in fp32
            torch_mask_(x, keys, bound, start)
        else:
            triton_hashing.mask_(x, keys, bound, start, lowest(x.dtype))
