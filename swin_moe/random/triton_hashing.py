"""The hashes of hashing.py as Triton kernels: one pass over memory each, and the same bits.

Tests run them on a CPU by Triton's interpreter (TRITON_INTERPRET=1).

Legend: N rows, n elements a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from parallel.counter_rng import SIGNED_FIRST, SIGNED_SECOND

BLOCK = 1024  # elements of a program
FIRST, SECOND = tl.constexpr(SIGNED_FIRST), tl.constexpr(SIGNED_SECOND)


def mix(z: Tensor) -> Tensor:
    """`mix64_tensor` of parallel/counter_rng.py: int64 of any shape."""
    z = z.contiguous()
    out = torch.empty_like(z)
    if z.numel():
        mix_kernel[(triton.cdiv(z.numel(), BLOCK),)](z, out, z.numel(), BLOCK=BLOCK)
    return out


def words(keys: Tensor, n: int, start: int) -> Tensor:
    """One random word an element: (N,) int64 keys -> (N, n) int32, from element `start` of each row."""
    out = keys.new_empty((len(keys), n), dtype=torch.int32)
    if out.numel():
        grid, tile = _tiles(len(keys), n)
        words_kernel[grid](keys.contiguous(), out, len(keys), n, start, **tile)
    return out


def mask_(x: Tensor, keys: Tensor, bound: int, start: int, amount: float) -> None:
    """Add `amount` to every element of x (N, n) whose word is below `bound`, in place."""
    assert x.stride(1) == 1 or x.shape[1] == 1, "rows lie in one piece"
    if x.numel():
        grid, tile = _tiles(*x.shape)
        mask_kernel[grid](x, keys.contiguous(), len(x), x.shape[1], x.stride(0), start, bound, amount, **tile)


def _tiles(rows: int, n: int) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid of programs, and the rows and columns of each."""
    columns = min(BLOCK, triton.next_power_of_2(n))
    tile = {"ROWS": BLOCK // columns, "COLUMNS": columns}
    return (triton.cdiv(rows, tile["ROWS"]), triton.cdiv(n, columns)), tile


@triton.jit
def _shift(z, bits: tl.constexpr):  # type: ignore[no-untyped-def]
    return (z.to(tl.uint64, bitcast=True) >> bits).to(tl.int64, bitcast=True)


@triton.jit
def mix_kernel(z_ptr, out_ptr, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(z_ptr + at, mask=at < size, other=0)
    z = (z ^ _shift(z, 30)) * FIRST
    z = (z ^ _shift(z, 27)) * SECOND
    tl.store(out_ptr + at, z ^ _shift(z, 31), mask=at < size)


@triton.jit
def _tile_words(keys_ptr, row, column, rows, start):  # type: ignore[no-untyped-def]
    """Words of a tile: rows (R,), columns (K,) -> (R, K) int32."""
    key = tl.load(keys_ptr + row, mask=row < rows, other=0)
    low, high = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    h = (column + start).to(tl.uint32)[None, :] * 2654435769 + low[:, None]
    h ^= h >> 16
    h *= 2246822507
    h ^= high[:, None]
    h ^= h >> 13
    h *= 3266489909
    h ^= h >> 16
    return h.to(tl.int32, bitcast=True)


@triton.jit
def words_kernel(  # type: ignore[no-untyped-def]
    keys_ptr, out_ptr, rows, n, start, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < n)[None, :]
    h = _tile_words(keys_ptr, row, column, rows, start)
    tl.store(out_ptr + row.to(tl.int64)[:, None] * n + column[None, :], h, mask=inside)


@triton.jit
def mask_kernel(  # type: ignore[no-untyped-def]
    x_ptr, keys_ptr, rows, n, stride, start, bound, amount, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < n)[None, :]
    dropped = _tile_words(keys_ptr, row, column, rows, start) < bound
    at = x_ptr + row.to(tl.int64)[:, None] * stride + column[None, :]
    x = tl.load(at, mask=inside)
    masked = x.to(tl.float32) + tl.where(dropped, amount, 0.0)
    tl.store(at, masked.to(x.dtype), mask=inside)
