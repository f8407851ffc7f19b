"""How long an action takes on all ranks at once, for calibration."""

import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from parallel.ranks.collectives import gather_objects

BUDGET_S, LEAST, MOST, REPETITIONS = 0.1, 3, 50, 7


class Stopwatch:
    """Seconds of an action on all ranks at once: the median here, the mean over the ranks.

    Args:
        device: on which it is done.
        ranks: of this machine.
        processor: whether collectives, too, are measured in the processor's seconds; on a machine with other
            load, against steps that are measured so.
    """

    def __init__(self, device: torch.device, ranks: int, *, processor: bool = False) -> None:
        self.device = device
        self.processor = processor and device.type == "cpu"
        self.share = max(1.0, ranks * torch.get_num_threads() / (os.cpu_count() or 1))

    def __call__(self, action: Callable[[], object]) -> float:
        """Seconds of one call that computes."""
        on_processor = self.device.type == "cpu"
        action()
        self._meet()
        seconds: list[float] = []
        while len(seconds) < LEAST or (sum(seconds) < BUDGET_S and len(seconds) < MOST):
            seconds.append(self._once(action, on_processor))
        return statistics.fmean(gather_objects(statistics.median(seconds)))

    def together(self, action: Callable[[], object], *, computes: bool = False) -> float:
        """Seconds of a collective, or of an action that also `computes`; all ranks repeat it as often."""
        on_processor = self.processor or (computes and self.device.type == "cpu")
        action()
        seconds = []
        for _ in range(REPETITIONS):
            self._meet()
            seconds.append(self._once(action, on_processor))
        return statistics.fmean(gather_objects(statistics.median(seconds)))

    def _once(self, action: Callable[[], object], on_processor: bool) -> float:
        clock = time.process_time if on_processor else time.perf_counter
        began_s = clock()
        action()
        self._finish()
        return (clock() - began_s) * (self.share if on_processor else 1.0)

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _meet(self) -> None:
        self._finish()
        if dist.is_initialized():
            dist.barrier()
