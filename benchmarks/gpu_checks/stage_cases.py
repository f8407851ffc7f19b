"""A process of engines.stages: `python -m gpu_checks.stage_cases FOLDER DEVICE STEPS CASE ...`.

DeepSpeed decides once a process which accelerator it is for, so that a GPU's engines and the CPU's, which
they are compared with, are in processes of their own. A case is written STAGE-PRECISION, `2-bf16-offload`
too. Its outcome is FOLDER/CASE.pt, written as a whole.
"""

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_checks.small import Run, SmallCase


def read(text: str) -> SmallCase:
    """The case of a name."""
    stage, precision, *more = text.split("-")
    return SmallCase(stage=int(stage), precision=precision, offload=more == ["offload"])  # type: ignore[arg-type]


def outcome(case: SmallCase, device: torch.device, steps: int) -> dict[str, Any]:
    """Losses and masters of some steps, then of a step that a gradient spoils, and of the one after it."""
    from parallel.zero.master_weights import MasterWeights

    began = time.monotonic()
    run = Run.start(case, device)
    masters = MasterWeights(run.engine.deepspeed)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    losses, norms, skips = [], [], []
    computed = computing_dtypes(run)
    for _ in range(steps):
        losses += run.train(1)
        norms.append(run.engine.grad_norm)
        skips.append(run.engine.skipped)
    weights = read_masters(masters)
    return {
        "losses": losses,
        "norms": norms,
        "skipped": skips,
        "weights": weights,
        "computes_in": " ".join(sorted(computed)),
        "finite": all(bool(torch.isfinite(value).all()) for value in weights.values()),
        "optimizer": type(run.engine.deepspeed.optimizer).__name__,
        "spoiled": spoiled(run, masters),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0,
        "seconds": time.monotonic() - began,
    }


def computing_dtypes(run: Run) -> set[str]:
    """Filled by the first forward pass: the dtypes of what linear layers give."""
    found: set[str] = set()

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        found.add(str(output.dtype).removeprefix("torch."))

    for name, module in run.engine.module.named_modules():
        if name.endswith("attention.proj"):
            module.register_forward_hook(see)
    return found


def read_masters(masters: Any) -> dict[str, torch.Tensor]:
    """The fp32 masters on the host, by name."""
    kinds = [masters.kinds[0]]
    named = masters.module.named_parameters()
    return {name: masters.read(p, kinds)[kinds[0]].detach().float().cpu().clone() for name, p in named}


def spoiled(run: Run, masters: Any) -> dict[str, Any]:
    """A step with a gradient of NaN, which is to change nothing, and one after it, which goes on."""
    scale = run.engine.loss_scale.value if run.engine.loss_scale else 1.0
    victim = list(run.engine.module.parameters())[-1]
    before = read_masters(masters)
    hook = victim.register_hook(lambda gradient: gradient * float("nan"))
    run.train(1)
    hook.remove()
    skipped, kept = run.engine.skipped, _equal(before, read_masters(masters))
    ratio = run.engine.loss_scale.value / scale if run.engine.loss_scale else None
    loss = run.train(1)[0]
    return {
        "skipped": skipped,
        "kept_weights": kept,
        "scale_ratio": ratio,
        "next_is_taken": not run.engine.skipped and not _equal(before, read_masters(masters)),
        "next_loss": loss,
    }


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def main(folder: Path, device_type: str, steps: int, cases: list[str]) -> None:
    """Each case in turn; one that raises is written down, and the next one goes on."""
    from parallel.ranks.discover import discover
    from parallel.ranks.init import join, leave, prepare_process

    ranks = discover()
    device = prepare_process(ranks)
    assert device.type == device_type, f"computes on {device}, not on {device_type}"
    join(ranks, device)
    for name in cases:
        try:
            found = outcome(read(name), device, steps)
        except Exception as error:
            traceback.print_exc()
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            found = {"error": f"{type(error).__name__}: {error}"[:400], "at": place}
        unfinished = folder / f"{name}.tmp"
        torch.save(found, unfinished)
        os.replace(unfinished, folder / f"{name}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
