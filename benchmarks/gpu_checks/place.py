"""Where a check runs, and how a row says what was found."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


@dataclass(frozen=True)
class CheckContext:
    """The device of a check, and a folder of its own for what it writes.

    `rehearsal` asks for the smallest sizes: everything runs once, on a CPU in a few seconds, and the numbers
    mean nothing. On a GPU it is False.
    """

    device: torch.device
    folder: Path
    rehearsal: bool

    @property
    def on_gpu(self) -> bool:
        """False in a rehearsal on a CPU."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done everything that was launched."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def milliseconds(self, work: Callable[[], object], repeats: int = 10) -> float:
        """Median milliseconds of `work`, by events on a GPU, after three calls (in a rehearsal: one)."""
        repeats = 1 if self.rehearsal else repeats
        for _ in range(1 if self.rehearsal else 3):
            work()
        self.synchronize()
        if not self.on_gpu:
            began = time.perf_counter()
            for _ in range(repeats):
                work()
            return (time.perf_counter() - began) * 1e3 / repeats
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            work()
            event.record()
        self.synchronize()
        spans = sorted(a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False))
        return spans[len(spans) // 2]

    def peak_gb(self, work: Callable[[], object]) -> float:
        """GB of device memory that `work` takes at most, besides what is there before; 0 on a CPU."""
        if not self.on_gpu:
            work()
            return 0.0
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        self.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e9

    def poison(self, gigabytes: float = 4.0) -> None:
        """Fill the allocator's free memory with NaN, so that a read of memory nothing wrote shows.

        Tensors of up to 1 MiB have blocks of their own on a GPU: a share is filled in such pieces.
        """
        size = int(gigabytes * 2**30 / 4) if self.on_gpu else 2**20
        held = [torch.full((size,), float("nan"), device=self.device)]
        held += [torch.full((2**18,), float("nan"), device=self.device) for _ in range(200 * self.on_gpu)]


def row(what: str, ok: bool | None = None, **numbers: object) -> Row:
    """What was looked at, whether it is as it must be (None: a mere figure), and the numbers."""
    return {"what": what, "ok": ok, **numbers}


def close(what: str, got: torch.Tensor, wanted: torch.Tensor, bound: float, **numbers: object) -> Row:
    """A row that holds the relative error |got - wanted| / |wanted| (2-norms, in float64) under `bound`."""
    got, wanted = got.detach().double().cpu(), wanted.detach().double().cpu()
    error = float((got - wanted).norm() / wanted.norm().clamp(min=1e-30))
    return row(what, ok=error <= bound, error=error, bound=bound, **numbers)  # a NaN is no right answer


Check = Callable[[CheckContext], Iterator[Row]]
