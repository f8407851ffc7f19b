"""Carry out one operation a sample, each kind on the samples that drew it and on no others.

Which samples those are is known on the host, so nothing is read back from the device, and a batch costs what
its own operations cost. B = pictures, H, W = their height and width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.augment.lut import TABLES, blend, look_up, luma
from data_shards.augment.randaugment import Op
from data_shards.augment.warp import WARPS, matrices, warp
from parallel.ranks.host import send


def operate(pictures: Tensor, ops: Tensor, arguments: Tensor, fill: Tensor, resample: str) -> None:
    """Apply to each picture, in place, its operation.

    pictures (B, 3, H, W) uint8 and fill (3,) uint8 on any device; ops (B,) int64 of `Op` and arguments (B,)
    float32 on the host; resample bilinear or bicubic.
    """
    _apply_tables(pictures, ops, arguments)
    rows = torch.isin(ops, torch.tensor(WARPS)).nonzero()[:, 0]
    if len(rows):
        at = send(rows, pictures.device)
        sides = pictures.shape[-2], pictures.shape[-1]
        maps = send(matrices(ops[rows], arguments[rows], sides), pictures.device)
        pictures.index_copy_(0, at, warp(pictures.index_select(0, at), maps, fill, resample))
    for op, degenerate in {Op.COLOR: gray, Op.SHARPNESS: smooth}.items():
        rows = (ops == op).nonzero()[:, 0]
        if len(rows):
            at, factors = send(rows, pictures.device), send(arguments[rows], pictures.device)
            chosen = pictures.index_select(0, at)
            pictures.index_copy_(0, at, blend(degenerate(chosen), chosen, factors[:, None, None, None]))


def _apply_tables(pictures: Tensor, ops: Tensor, arguments: Tensor) -> None:
    """All look-up-table operations: a table for each of their pictures, then one look-up."""
    drawn = {op: rows for op in TABLES if len(rows := (ops == op).nonzero()[:, 0])}
    if not drawn:
        return
    rows = torch.cat(list(drawn.values()))
    at, sent = send(rows, pictures.device), send(arguments[rows], pictures.device)
    counts = [len(part) for part in drawn.values()]
    chosen = pictures.index_select(0, at)
    parts = zip(drawn, chosen.split(counts), sent.split(counts), strict=True)
    tables = torch.cat([TABLES[op](part, values) for op, part, values in parts])
    pictures.index_copy_(0, at, look_up(chosen, tables))


def gray(pictures: Tensor) -> Tensor:
    """What COLOR blends with: (B, 3, H, W) uint8 -> (B, 1, H, W)."""
    return luma(pictures)[:, None]


def smooth(pictures: Tensor) -> Tensor:
    """What SHARPNESS blends with, PIL's ImageFilter.SMOOTH: (1 1 1, 1 5 1, 1 1 1) / 13 within the border."""
    values = pictures.float()  # sums of up to 13 * 255 are exact
    if min(pictures.shape[-2:]) < 3:  # nothing lies within the border
        return values
    inner = F.avg_pool2d(values, 3, stride=1, divisor_override=1) + 4 * values[..., 1:-1, 1:-1]
    values[..., 1:-1, 1:-1] = ((2 * inner + 13) / 26).floor()  # rounded; never a tie, 13 being odd
    return values
