"""Seconds of operations on a device: the slower of computing and moving bytes (Williams et al. 2009).

Products reach a share of the peak that follows from their shape: tiles at the edges are padded, and the last
wave of tiles leaves multiprocessors idle (NVIDIA, "Matrix Multiplication Background User's Guide", tile and
wave quantization); or the share that was measured, where the profile has a curve. A GPU works while the host
launches: a sequence takes as long as the slower of both. A CPU does one after the other.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from launcher.plan.base.hardware import Hardware, on_curve
from launcher.plan.base.trace import TracedOp

SPLIT_K = 512  # the least that a kernel leaves to each part when it cuts the k of few tiles into several


class Widths(NamedTuple):
    """Bytes of an element in a precision."""

    product: float
    passes: float
    gradient: float  # on its way between ranks, and gathered parameters
    row: float  # of tokens on their way to experts


# amp is torch's autocast of a model in fp32, which published figures were taken with: products and what feeds
# them in fp16, norms, softmax and the residual branch in fp32. No precision of this program.
WIDTHS = {
    "fp32": Widths(4.0, 4.0, 4.0, 4.0),
    "bf16": Widths(2.0, 2.0, 2.0, 2.0),
    "fp16": Widths(2.0, 2.0, 2.0, 2.0),
    "amp": Widths(2.0, 4.0, 4.0, 2.0),
}
AMP_HALF = ("gelu", "gelu_backward")  # passes that autocast leaves in fp16


def ops_s(ops: Iterable[TracedOp], hardware: Hardware, precision: str) -> float:
    """Seconds of a sequence of operations.

    Raises:
        ConfigError: the profile does not know the precision.
    """
    device_s = launches = 0.0
    for op in ops:
        device_s += op_s(op, hardware, precision)
        launches += op.launches
    host_s = launches * hardware.launch_us * 1e-6
    return max(device_s, host_s) if hardware.device == "cuda" else device_s + host_s


def op_s(op: TracedOp, hardware: Hardware, precision: str) -> float:
    """Seconds of an operation on the device, without its launch."""
    moved = op.elements * _width(op, precision) + op.other_bytes
    if op.kind != "product":
        return moved / (pass_gb_s(op.kind, moved / max(1.0, op.launches), hardware) * 1e9)
    if not op.multiply_adds:
        return 0.0
    memory_s = moved / (hardware.memory_gb_s * hardware.memory_efficiency * 1e9)
    return max(2 * op.multiply_adds / product_flops(op, hardware, precision), memory_s)


def _width(op: TracedOp, precision: str) -> float:
    widths = WIDTHS[precision]
    half = op.kind == "product" or (precision == "amp" and op.kind in AMP_HALF)
    return widths.product if half else widths.passes


def pass_gb_s(kind: str, moved: float, hardware: Hardware) -> float:
    """GB/s of a pass over so many bytes."""
    curve = hardware.passes.get(kind)
    return on_curve(curve, moved) if curve else hardware.memory_gb_s * hardware.memory_efficiency


def product_flops(op: TracedOp, hardware: Hardware, precision: str) -> float:
    """FLOP/s that a product reaches, were memory no limit."""
    batched = op.batch / op.launches > 1
    curves = hardware.batched_products if batched and hardware.batched_products else hardware.products
    if precision in curves:
        size = (op.m * op.n * op.k) ** (1 / 3) if batched else min(op.m, op.n, op.k)
        return on_curve(curves[precision], size) * 1e12
    share = hardware.product_efficiency
    if hardware.tile:
        share *= tile_share(op, hardware.tile, hardware.units)
    return hardware.peak(precision) * share


def tile_share(op: TracedOp, tile: int, units: int) -> float:
    """The share of the multiprocessors' time that goes into what is wanted.

    Few tiles with a long k are cut along k, as cuBLAS does (split-k).
    """
    sides = [_side(op.m, tile), _side(op.n, tile)]
    tiles = [math.ceil(size / side) for size, side in zip((op.m, op.n), sides, strict=True)]
    padded = math.prod(count * side for count, side in zip(tiles, sides, strict=True))
    small = math.prod(side / tile for side in sides)  # of a whole tile's work
    jobs = max(1.0, math.prod(tiles) * op.batch * small)
    if jobs < units:
        jobs = min(units, jobs * max(1, int(op.k / SPLIT_K)))
    return op.m * op.n / padded * jobs / (math.ceil(jobs / units) * units)


def _side(size: float, tile: int) -> float:
    """The side of a tile for a dim: smaller kernels exist down to 32."""
    return tile if size >= tile else max(32, 2 ** math.ceil(math.log2(max(size, 1))))
