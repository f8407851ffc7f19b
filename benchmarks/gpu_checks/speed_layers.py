"""The MoE layers of benchmarks/moe_layers.py beside a dense MLP of equal FLOPs, in bf16."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from gpu_checks.place import CheckContext, Row, row
from gpu_checks.subjects import Work, alone, free, interleaved

if TYPE_CHECKING:  # it imports DeepSpeed
    from moe_layers import Entry, LayerCase

SIZES = ((8, 1), (8, 2), (32, 1), (32, 2))  # experts, choices
TOKENS, SMALL = 18432, 288


def layers(place: CheckContext) -> Iterator[Row]:
    """A training step of each layer: forward, balance loss, backward."""
    from moe_layers import LayerCase

    with alone(place) as device:
        try:
            from parallel.zero.start import start_deepspeed

            start_deepspeed()
        except Exception as error:  # the entries of DeepSpeed say so, too
            yield row("deepspeed", ok=False, error=f"{type(error).__name__}: {error}"[:400])
        tokens = SMALL if place.rehearsal else TOKENS
        for experts, top_k in SIZES[1:3] if place.rehearsal else SIZES:
            case = LayerCase(
                tokens=tokens, num_experts=experts, top_k=top_k, dtype="bf16", device=device.type, skew=1.1
            )
            try:
                yield from _case(place, case)
            except Exception as error:
                yield row(f"E={experts} k={top_k}", ok=False, error=f"{type(error).__name__}: {error}"[:400])
            free()


def _entries() -> "dict[str, Entry]":
    """The contestants by a name; the dense one comes first."""
    from moe_layers import Entry

    ours = Entry(impl="native", capacity_factor=0.0)
    capped = Entry(impl="native", capacity_factor=1.25)
    padded = replace(capped, padded=True)
    entries = {
        "dense": Entry(impl="dense"),
        "ours dropless": ours,
        "torchtitan-like dropless": Entry(impl="torchtitan-like", capacity_factor=0.0),
        "ours 1.25": capped,
        "ours 1.25 padded": padded,
        "deepspeed 1.25": Entry(impl="deepspeed", capacity_factor=1.25),
        "deepspeed dropless": Entry(impl="deepspeed", capacity_factor=0.0),
    }
    dropping = {"ours dropless": ours, "ours 1.25": capped, "ours 1.25 padded": padded}
    entries |= {f"{name}, dropout 0.1": replace(entry, dropout=0.1) for name, entry in dropping.items()}
    with contextlib.suppress(Exception):
        from swin_moe.moe.backends.tutel import import_tutel

        import_tutel()
        entries["tutel 1.25"] = Entry(impl="tutel", capacity_factor=1.25)
        entries["tutel dropless"] = Entry(impl="tutel", capacity_factor=0.0)
    return entries


def _case(place: CheckContext, case: "LayerCase") -> Iterator[Row]:
    """One row a contestant, all of them interleaved."""
    from moe_layers import works_of

    from parallel.ranks.mesh import Mesh, ParallelDims

    works: dict[str, Work] = {}
    errors: dict[str, str] = {}
    for name, entry in _entries().items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed tells which groups it makes
                works[name] = works_of(case, [entry], Mesh(dims=ParallelDims()))[entry]
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"[:400]
    found = interleaved(place, works, rounds=4, burst=5)
    dense = found.get("dense")
    size = {"tokens": case.tokens, "experts": case.num_experts, "top_k": case.top_k}
    for name, result in (errors | found).items():
        what = f"E={case.num_experts} k={case.top_k} {name}"
        if isinstance(result, str):
            yield row(what, ok=False if name.startswith(("ours", "dense")) else None, error=result, **size)
            continue
        ratio = result / dense if isinstance(dense, float) else None
        figures = {"ms": result, "tflops": case.flops / result / 1e9, "ratio_to_dense": ratio}
        reads = _host_reads(works[name]) if place.on_gpu else None
        yield row(what, who=name, **size, **figures, peak_gb=place.peak_gb(works[name]), host_reads=reads)


def _host_reads(work: Work) -> int | None:
    """How often a step waits for the device, by torch's own count."""
    import warnings

    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            work()
    except Exception:
        return None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
