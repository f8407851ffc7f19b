"""What this machine can do, measured by all its ranks at the same time, as a profile for `plan --gpu`.

Every figure is the median of a few repetitions on each rank, and of the ranks their mean. On a CPU, computing
is measured in the processor's seconds, which a neighbour's load hardly changes; with more ranks than cores a
rank has a share of a core, and takes as many times as long. Collectives are measured by the clock on the
wall. Every repetition has other tensors, because those of a step are seldom in the cache. A pass is counted
in the bytes by which launcher/plan/base/trace.py counts it, so that both mean the same.
"""

import itertools
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from torch import Tensor

from launcher.plan.base.hardware import Curve, Device, Hardware, Link
from launcher.plan.base.passes import PASSES, update
from launcher.plan.base.stopwatch import Stopwatch
from launcher.plan.base.trace import record
from launcher.plan.time.workload import describe
from launcher.plan.time.zero3_hooks import hooks_s
from parallel.zero.dtypes import DTYPES
from swin_moe.backbone.model import build_model
from swin_moe.config import ModelConfig

SIDES = 16, 32, 64, 128, 256, 512  # of products; the least of (m, n, k)
ROWS = 2048
WINDOWS = ((16, 16), (64, 32), (144, 32))  # tokens of a window and channels of a head
SIZES = 2**14, 2**18, 2**22  # elements of a pass
MESSAGES = 2**16, 2**23  # bytes of a collective: of the first what it waits, of both what it carries
PAGES_BYTES = 2**25
POOL_BYTES, POOL = 2**26, 50  # of the tensors that repetitions take in turns, and their number at most
SMALL = ModelConfig(image_size=16, num_classes=8, embed_dim=8, depths=(4,), num_heads=(1,), window_size=4)
Say = Callable[[str], None]


def measure(device: torch.device, say: Say = lambda _: None, *, processor: bool = False) -> Hardware:
    """Measure; every rank calls it together, and all get the same profile. `processor`: see Stopwatch."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    watch = Stopwatch(device, ranks, processor=processor)
    say("the cost of an operation")
    launch_s, host_s = _bare_launch_s(watch), _launch_s(watch)
    precisions = ["fp32", "bf16"] + (["fp16"] if device.type == "cuda" else [])
    products, batched, peaks = {}, {}, {}
    for precision in precisions:
        say(f"products in {precision}")
        products[precision] = _products(watch, DTYPES[precision], launch_s)
        batched[precision] = _batched(watch, DTYPES[precision], launch_s)
        peaks[precision] = max(rate for _, rate in products[precision])
    passes: dict[str, Curve] = {}
    for kind, make in PASSES.items():
        say(f"passes over memory: {kind}")
        passes[kind] = _pass(watch, make, launch_s)
    say("collectives")
    link = _link(watch, ranks)
    say("the hooks of ZeRO 3")
    module_s = hooks_s(watch, SMALL)
    memory = passes["copy"][-1][1]
    return Hardware(
        name=f"this machine, {ranks} ranks",
        device=_kind(device),
        peak_tflops=peaks,
        product_efficiency=1.0,
        memory_gib=_memory_gib(device, ranks),
        memory_gb_s=memory,
        memory_efficiency=1.0,
        ranks_per_node=ranks,
        in_node=link,
        between=link,
        launch_us=host_s * 1e6,
        zero3_module_us=module_s * 1e6,
        start_us=0.0,
        products=products,
        batched_products=batched,
        passes=passes,
        host_gb_s=passes["update"][-1][1],
        first_touch_gb_s=_first_touch_gb_s(watch) if device.type == "cpu" else 0.0,
        cores_per_rank=(os.cpu_count() or 1) / ranks,
    )


def write(hardware: Hardware, file: Path) -> None:
    """Write a profile that `load_hardware` reads."""
    tree = asdict(hardware)
    for name in ("products", "batched_products", "passes"):
        curves = tree[name].items()
        tree[name] = {key: [[_short(x) for x in point] for point in curve] for key, curve in curves}
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=110)
    file.write_text(f"# measured by swin-moe plan --calibrate, torch {torch.__version__}\n{text}")


def _kind(device: torch.device) -> Device:
    return "cuda" if device.type == "cuda" else "cpu"


def _launch_s(watch: Stopwatch) -> float:
    """Of one operation of a model too small to compute: modules, views and autograd are in it."""
    model = build_model(SMALL).to(watch.device).train()
    images = torch.zeros(1, 3, *SMALL.image_sides, device=watch.device)
    keys = torch.zeros(1, dtype=torch.int64, device=watch.device)
    parts = describe(SMALL, device=_kind(watch.device)).parts
    launches = sum(op.launches * part.number for part in parts for ops in part.trace.at(1) for op in ops)
    return watch(lambda: model(images, keys).logits.sum().backward()) / launches


def _first_touch_gb_s(watch: Stopwatch) -> float:
    """Of pages that the kernel has yet to give and to clear, beside what writing to them takes."""
    pages = mmap.mmap(-1, PAGES_BYTES)
    old = torch.frombuffer(pages, dtype=torch.uint8)

    def first() -> None:
        torch.frombuffer(mmap.mmap(-1, PAGES_BYTES), dtype=torch.uint8).fill_(1)

    extra_s = watch(first) - watch(lambda: old.fill_(1))
    return PAGES_BYTES / max(extra_s, 1e-9) / 1e9


def _bare_launch_s(watch: Stopwatch) -> float:
    """Of one operation on a few numbers, among many: dispatch and an allocation."""
    x = torch.ones(8, device=watch.device)

    def many() -> None:
        for _ in range(500):
            x.mul(2.0)

    return watch(many) / 500


def _pool(size: int) -> int:
    """How many tensors of so many bytes are more than any cache holds."""
    return max(2, min(POOL, POOL_BYTES // size))


def _in_turns(actions: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """An action that is another one at every call."""
    turns = itertools.cycle(actions)
    return lambda: next(turns)()


def _own_s(seconds: float, launch_s: float) -> float:
    """Without what launching took, of which the least that can be told apart is half of the whole."""
    return max(seconds - launch_s, seconds / 2)


def _products(watch: Stopwatch, dtype: torch.dtype, launch_s: float) -> Curve:
    """The three products of a linear layer's step: its answer, and the gradients of input and weight."""
    points = []
    for side in SIDES:
        weight, bias = (
            torch.randn(*shape, device=watch.device, dtype=dtype) for shape in ((side, side), (side,))
        )

        def step(x: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> None:
            F.linear(x, weight, bias)
            x @ weight
            x.mT @ x

        rows = [
            torch.randn(ROWS, side, device=watch.device, dtype=dtype) for _ in range(_pool(4 * ROWS * side))
        ]
        seconds = _own_s(watch(_in_turns([partial(step, x) for x in rows])), 3 * launch_s)
        points.append((float(side), 3 * 2 * ROWS * side * side / seconds / 1e12))
    return tuple(points)


def _batched(watch: Stopwatch, dtype: torch.dtype, launch_s: float) -> Curve:
    """Scores and answers of attention."""
    points = []
    for tokens, channels in WINDOWS:
        q = torch.randn(128, tokens, channels, device=watch.device, dtype=dtype)
        scores = torch.randn(128, tokens, tokens, device=watch.device, dtype=dtype)

        def both(q: Tensor = q, scores: Tensor = scores) -> None:
            q @ q.mT
            scores @ q

        seconds = _own_s(watch(both), 2 * launch_s)
        flops = 2 * 2 * 128 * tokens * tokens * channels
        points.append(((tokens * tokens * channels) ** (1 / 3), flops / seconds / 1e12))
    return tuple(points)


ADAM_BYTES = 28  # an element's, as launcher/plan/time/estimate.py counts them


def _pass(watch: Stopwatch, make: Callable[[Tensor], Callable[[], object]], launch_s: float) -> Curve:
    points = []
    for elements in SIZES:
        actions = [make(torch.randn(elements, device=watch.device)) for _ in range(_pool(4 * elements))]
        action = _in_turns(actions)
        if make is update:
            moved, launches = float(ADAM_BYTES * elements), 1
        else:
            with torch.no_grad():
                ops = record(action)
            moved = max(1, sum(4 * op.elements + op.other_bytes for op in ops) / len(ops))
            launches = len(ops)
        with torch.no_grad():
            seconds = _own_s(watch(action) / launches, launch_s)
        points.append((float(moved), moved / seconds / 1e9))
    return tuple(points)


def _link(watch: Stopwatch, ranks: int) -> Link:
    """Straight lines through two messages: what waits, and what carries."""
    if ranks == 1:
        return Link(gb_s=1.0, all_to_all_gb_s=1.0, step_us=0.0, message_us=0.0)
    reduced = [watch.together(action) for action in _collectives(watch.device, dist.all_reduce, ranks)]
    exchanged = [watch.together(action) for action in _collectives(watch.device, _exchange, ranks)]
    share = (ranks - 1) / ranks
    small, large = MESSAGES
    carried = share * (large - small)
    return Link(
        gb_s=2 * carried / max(reduced[1] - reduced[0], 1e-9) / 1e9,
        all_to_all_gb_s=carried / max(exchanged[1] - exchanged[0], 1e-9) / 1e9,
        step_us=max(0.0, reduced[0] / (2 * (ranks - 1)) * 1e6),
        message_us=max(0.0, exchanged[0] / (ranks - 1) * 1e6),
    )


def _collectives(
    device: torch.device, run: Callable[[Tensor], object], ranks: int
) -> Iterator[Callable[[], object]]:
    for size in MESSAGES:
        message = torch.zeros(size // 4 // ranks * ranks, device=device)
        yield partial(run, message)


def _exchange(message: Tensor) -> None:
    dist.all_to_all_single(torch.empty_like(message), message)


def _memory_gib(device: torch.device, ranks: int) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks / 2**30


def _short(value: float) -> float:
    return float(f"{value:.4g}")
