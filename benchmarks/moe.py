"""The MoE layer beside a dense MLP of equal FLOPs, DeepSpeed's and Tutel's layers, einsum dispatch, a loop.

    python benchmarks/moe.py --quick          # what the bars need: fp32 and bf16, skewed loads, two ranks
    python benchmarks/moe.py --json moe.json  # everything: an hour or two on two cores
    python benchmarks/moe.py --device cuda    # bf16 and TFLOP/s

A row is a training step: forward, balance loss and backward, to the tokens and to every weight, in the
median of interleaved rounds. On the CPU `seconds` are process CPU seconds of one thread, which a busy
neighbour hardly moves; on a GPU wall seconds between events. `ratio_to_dense` is over an MLP that is top_k
times as wide, in the same precision and rounds. `peak_bytes` are of tensors beyond parameters and tokens
(moe_layers.peak_bytes). `routing_share` is the router and the plan, forward and backward, over the layer.
`skew` is the largest load over the mean one, `dropped_share` the share of the choices that found no slot. On
several ranks every one has `tokens` tokens; see moe_ranks.py for `exposed_share`. bf16 has the weights in
bf16 too. Every contestant runs under the same thread count and glibc thresholds, without dropout.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Before torch loads: without these glibc gives every large tensor back, and page faults are what is timed.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
    "OMP_NUM_THREADS": "1",
    "KINETO_LOG_LEVEL": "99",
}
if __name__ == "__main__" and any(os.environ.get(name) != value for name, value in _ENVIRONMENT.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ENVIRONMENT})

import torch  # noqa: E402
from moe_chart import draw  # noqa: E402
from moe_layers import Entry, LayerCase, LayerClock, peak_bytes, works_of  # noqa: E402
from moe_ranks import on_ranks  # noqa: E402

from parallel.ranks.init import join, leave, prepare_process  # noqa: E402
from parallel.ranks.mesh import Mesh, ParallelDims  # noqa: E402
from parallel.ranks.rank import Ranks  # noqa: E402
from parallel.zero.start import start_deepspeed  # noqa: E402
from swin_moe.errors import ModelError  # noqa: E402
from swin_moe.moe.backends.tutel import INSTALL, import_tutel  # noqa: E402
from swin_moe.moe.capacity import capacity  # noqa: E402

Row = dict[str, Any]

CHART = Path(__file__).parent.parent / "docs" / "moe_skew.png"
EINSUM_CELLS = 2**26  # elements of the (T, E, S) mask beyond which einsum dispatch is not waited for
DENSE = Entry(impl="dense")
LIBRARIES = [
    Entry(impl=impl, capacity_factor=f) for impl in ("native", "tutel", "deepspeed") for f in (0.0, 1.25)
]
NAIVE = [Entry(impl="einsum", capacity_factor=1.25), Entry(impl="loop", capacity_factor=0.0)]
GPU_ONLY = [Entry(impl="torchtitan-like", capacity_factor=0.0)]  # a CPU computes grouped products one by one
PRIORITIZED = [Entry(impl=impl, capacity_factor=1.25, prioritized=True) for impl in ("native", "tutel")]
OVERLAPS = [Entry(impl="native", capacity_factor=0.0, overlap=pieces) for pieces in (2, 4)]


def table_cases(args: argparse.Namespace) -> list[LayerCase]:
    """Sizes, choices and precisions."""
    tokens = args.tokens or ([18432] if args.device == "cuda" else [4608, 18432])
    dtypes = ["bf16"] if args.device == "cuda" else ["fp32", "bf16"]
    cases = [
        LayerCase(tokens=t, num_experts=e, top_k=k, dtype=dtype, device=args.device)
        for dtype in dtypes
        for t in tokens
        for e in (8, 32)
        for k in (1, 2)
    ]
    if args.quick and args.device == "cpu":
        cases = [
            case for case in cases if case.top_k == 1 and (case.dtype == "fp32" or case.num_experts == 8)
        ]
        cases = [case for case in cases if case.num_experts == 32 or case.tokens == tokens[0]]
    return cases


def installed(entries: list[Entry]) -> list[Entry]:
    """Without Tutel where it does not import."""
    try:
        import_tutel()
    except ModelError:
        return [entry for entry in entries if entry.impl != "tutel"]
    return entries


def table_entries(case: LayerCase, quick: bool) -> list[Entry]:
    """Who runs on a case; einsum dispatch only where its mask is not absurd."""
    slots = capacity(1.25, case.tokens, case.num_experts, case.top_k)
    naive = [e for e in NAIVE if e.impl != "einsum" or case.tokens * case.num_experts * slots <= EINSUM_CELLS]
    on_gpu = GPU_ONLY if case.device == "cuda" else []
    return installed([DENSE, *LIBRARIES, *([] if quick else PRIORITIZED), *naive, *on_gpu])


def dropped_share(case: LayerCase, entry: Entry) -> float:
    """Of first choices, which are `case.skew` times the mean at one expert and even at the others."""
    if not entry.capacity_factor or case.top_k > 1:
        return 0.0
    slots = capacity(entry.capacity_factor, case.tokens, case.num_experts, case.top_k)
    crowd = round(case.skew * case.tokens / case.num_experts)
    other = (case.tokens - crowd) / (case.num_experts - 1)
    return (max(0, crowd - slots) + (case.num_experts - 1) * max(0.0, other - slots)) / case.tokens


def measure(case: LayerCase, entries: list[Entry], rounds: int) -> Iterator[Row]:
    """One row a contestant, all of them interleaved in this process."""
    clock = LayerClock(case.device)
    with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed tells which groups it makes
        works = works_of(case, entries, Mesh(dims=ParallelDims()))
    native = {entry: work for entry, work in works.items() if entry.impl == "native"}
    routing = {
        ("routing", entry): lambda w=work: w.args[0].routing_step(w.args[1]) for entry, work in native.items()
    }
    seconds = clock.medians({**works, **routing}, rounds)
    for entry, work in works.items():
        row = {**asdict(entry), "seconds": seconds[entry], "peak_bytes": peak_bytes(work, case.device)}
        if entry in native:
            row["routing_share"] = seconds["routing", entry] / seconds[entry]
        yield row


def finish(case: LayerCase, rows: list[Row]) -> list[Row]:
    """Add what the case says and the ratios, print, and hand the rows on."""
    dense = next(row["seconds"] for row in rows if row["impl"] == "dense")
    facts = asdict(case)
    for row in rows:
        entry = Entry(**{name: row[name] for name in asdict(DENSE)})
        row |= facts | {
            "ratio_to_dense": row["seconds"] / dense,
            "dropped_share": dropped_share(case, entry),
            "tflops": case.flops / row["seconds"] / 1e12,
        }
        show(row)
    gc.collect()
    return rows


def show(row: Row) -> None:
    """One line of the table."""
    factor = row["capacity_factor"]
    how = "" if factor is None else "dropless" if factor == 0 else f"capacity {factor}"
    extra = [f"overlap {row['overlap']}"] if row["overlap"] > 1 else []
    extra += [name for name in ("prioritized", "padded") if row[name]]
    extra += [f"dropout {row['dropout']}"] if row["dropout"] else []
    extra += [f"drops {row['dropped_share']:.0%}"] if row["dropped_share"] else []
    extra += [f"routing {row['routing_share']:.1%}"] if "routing_share" in row else []
    if "exposed_share" in row:
        extra += [f"exposed {row['exposed_share']:.1%}", f"wall {row['wall_seconds'] * 1e3:.0f} ms"]
    print(
        f"R={row['world_size']} T={row['tokens']:<6}E={row['num_experts']:<3}k={row['top_k']} {row['dtype']} "
        f"skew {row['skew']:<4}{row['impl']:<16}{how:<14}{row['seconds'] * 1e3:9.1f} ms"
        f"  ratio {row['ratio_to_dense']:5.2f}{row['tflops']:8.2f} TFLOP/s"
        f"{row['peak_bytes'] / 2**20:8.0f} MiB  {', '.join(extra)}",
        flush=True,
    )


def single(args: argparse.Namespace, rounds: int) -> Iterator[Row]:
    """Everything of one process."""
    prepared = prepare_process(Ranks())
    join(Ranks(), prepared)  # DeepSpeed wants a process group even alone; it opens no port
    start_deepspeed()
    for case in table_cases(args):
        yield from finish(case, list(measure(case, table_entries(case, args.quick), rounds)))
    skews = (4.2, 6.5) if args.quick else (2.0, 3.0, 4.2, 5.3, 6.5)  # 1.1 is in the table
    for skew in skews if args.device == "cpu" else ():
        case = LayerCase(tokens=min(args.tokens or [4608]), skew=skew)
        yield from finish(case, list(measure(case, installed([DENSE, *LIBRARIES]), rounds)))
    leave()


def several(args: argparse.Namespace, rounds: int) -> Iterator[Row]:
    """Everything of several ranks."""
    for world_size in args.ranks:
        for num_experts in (8,) if args.quick else (8, 32):
            case = LayerCase(
                tokens=min(args.tokens or [4608]), num_experts=num_experts, world_size=world_size
            )
            entries = installed([DENSE, *LIBRARIES, *OVERLAPS])
            yield from finish(case, on_ranks(case, entries, rounds))


def pick(rows: list[Row], **wanted: Any) -> list[Row]:
    """Rows with these values; those of plain order, no overlap and the smallest skew unless told."""
    plain = {"prioritized": False, "overlap": 1, "skew": 1.1, "world_size": 1} | wanted
    return [row for row in rows if all(row[name] == value for name, value in plain.items())]


def skewed(rows: list[Row]) -> list[Row]:
    """The rows of the chart: one size at every skew."""
    case = next(row for row in rows if row["skew"] > LayerCase().skew)
    same = {name: case[name] for name in ("tokens", "num_experts", "top_k", "dtype")}
    return [row for skew in {row["skew"] for row in rows} for row in pick(rows, **same, skew=skew)]


def worst(rows: list[Row], what: str = "ratio_to_dense") -> float | None:
    """The largest value of a column, None without rows."""
    return max((row[what] for row in rows if what in row), default=None)


def advantage(rows: list[Row], other: str, other_factor: float, factor: float, **wanted: Any) -> float | None:
    """The smallest of the other's seconds over ours, over the cases that both ran."""
    ours = {_case(row): row["seconds"] for row in pick(rows, impl="native", capacity_factor=factor, **wanted)}
    theirs = pick(rows, impl=other, capacity_factor=other_factor, **wanted)
    return min((row["seconds"] / ours[_case(row)] for row in theirs if _case(row) in ours), default=None)


def _case(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in asdict(LayerCase()))


def bars(rows: list[Row]) -> Iterator[tuple[str, float | None, str, float]]:
    """What must hold: words, the measured value (the worst of its cases), at most or at least, the bound."""
    ours = {"impl": "native", "capacity_factor": 0.0}
    fp32 = ours | {"dtype": "fp32"}
    yield "dropless / dense, fp32, E=8", worst(pick(rows, **fp32, num_experts=8)), "<=", 1.12
    yield (
        "dropless / dense, fp32, E=32, T=18432",
        worst(pick(rows, **fp32, num_experts=32, tokens=18432)),
        "<=",
        1.10,
    )
    yield (
        "dropless / dense, fp32, E=32, T=4608",
        worst(pick(rows, **fp32, num_experts=32, tokens=4608)),
        "<=",
        1.35,
    )
    yield "dropless / dense, bf16, E=8", worst(pick(rows, **ours, dtype="bf16", num_experts=8)), "<=", 1.20
    for other, bound in (("tutel", 1.30), ("deepspeed", 1.10)):
        value = advantage(rows, other, 1.25, 1.25, num_experts=8, dtype="fp32")
        yield f"{other} / ours, both at capacity 1.25, fp32, E=8", value, ">=", bound
    yield "dropless / dense, skew 4.2", worst(pick(rows, **fp32, skew=4.2)), "<=", 1.12
    for other in ("tutel", "deepspeed"):
        value = worst(pick(rows, impl=other, capacity_factor=0.0, skew=4.2))
        yield f"{other}, dropless / dense, skew 4.2", value, ">=", 4.0
    for other in ("tutel", "deepspeed"):
        value = advantage(rows, other, 1.25, 0.0, world_size=2)
        yield f"2 ranks: {other} at capacity 1.25 / ours dropless", value, ">=", 1.2
    yield (
        "routing / layer, T=4608, E=8, k=1, fp32",
        worst(pick(rows, **fp32, tokens=4608, num_experts=8, top_k=1), "routing_share"),
        "<=",
        0.06,
    )
    yield "routing / layer, every case", worst(pick(rows, **ours), "routing_share"), "<=", 0.06


def main() -> None:
    """Run every measurement, write the rows and the chart, and say which bars hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--chart", type=Path, default=CHART, help="where the PNG goes")
    parser.add_argument("--quick", action="store_true", help="what the bars need, fewer rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens", type=int, action="append", help="these instead; multiples of 144")
    parser.add_argument("--rounds", type=int, help="measured rounds")
    parser.add_argument("--ranks", type=int, nargs="*", help="gloo ranks; default 2 4, quick 2")
    args = parser.parse_args()
    if args.ranks is None:
        args.ranks = [] if args.device == "cuda" else [2] if args.quick else [2, 4]
    rounds = args.rounds or (3 if args.quick else 7)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that no rank is left behind
    torch.set_num_threads(1)
    machine = (
        torch.cuda.get_device_name()
        if args.device == "cuda"
        else torch.cpu.get_capabilities().get("cpu_name")
    )
    print(f"torch {torch.__version__}, {machine}, 1 thread, medians of {rounds} rounds")
    if installed(LIBRARIES) != LIBRARIES:
        print(f"Tutel does not import and is left out: {INSTALL}")
    rows = [*single(args, rounds), *several(args, rounds)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.device == "cpu":
        draw(skewed(rows), args.chart)
    for words, value, relation, bound in bars(rows):
        met = value is not None and (value <= bound if relation == "<=" else value >= bound)
        verdict = "not measured" if value is None else f"{value:.3f}, {'met' if met else 'NOT MET'}"
        print(f"{words} {relation} {bound}: {verdict}")


if __name__ == "__main__":
    main()
