"""`train.profile`: some steps of a rank as a trace, tables of operators, and the course of its memory.

RUN/profile/rank0_steps10-12.json.gz          the trace, for https://ui.perfetto.dev
RUN/profile/rank0_steps10-12_memory.json.gz   memory of tensors against the start, likewise
RUN/profile/rank0_steps10-12.txt              the top operators by time and by memory
RUN/profile/rank0_steps10-12_memory.pickle    on a GPU: every allocation, for https://pytorch.org/memory_viz
"""

import gzip
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from launcher.config.profile import ProfileConfig

logger = logging.getLogger(__name__)

MOST_ALLOCATIONS = 1_000_000  # that a memory snapshot of a GPU goes back
ROWS = 20  # of a table
MIB = 2**20


class StepProfiler:
    """Records the steps of `train.profile` that a session takes.

    Args:
        directory: RUN/profile.
        options: `train.profile`; None records nothing.
        rank: of this process.
        device: of its model.
    """

    def __init__(
        self, directory: Path, options: ProfileConfig | None, *, rank: int, device: torch.device
    ) -> None:
        self._directory, self._rank, self._device = directory, rank, device
        self._options = options if options is not None and rank in options.ranks else None
        self._profile: profile | None = None
        self._first = self._last = 0  # recorded steps

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Record a step if it is one of those, and write the files after the last of them."""
        options = self._options
        if options is None or not options.first <= step <= options.last:
            yield
            return
        if self._profile is None:
            self._start(step)
        self._last = step
        with record_function(f"step {step}"):
            yield

    @property
    def is_due(self) -> bool:
        """Whether all steps are recorded and not yet written."""
        return self._profile is not None and self._options is not None and self._last == self._options.last

    def region(self, name: str) -> AbstractContextManager[Any]:
        """Name a part of a step in the trace; nothing while no step is recorded."""
        return nullcontext() if self._profile is None else record_function(name)

    def write(self) -> None:
        """Write the files of what was recorded, if anything, and log how to open them."""
        recorded, self._profile = self._profile, None
        if recorded is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        recorded.stop()
        name = f"rank{self._rank}_steps{self._first}-{self._last}"
        try:
            self._directory.mkdir(exist_ok=True)
            self._write(recorded, self._directory / name)
        except OSError as error:
            logger.warning("the profile of steps %d to %d is lost: %s", self._first, self._last, error)

    def _start(self, step: int) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its messages of success
        self._first = step
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=MOST_ALLOCATIONS)
        self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)
        self._profile.start()

    def _write(self, recorded: profile, stem: Path) -> None:
        trace, memory = Path(f"{stem}.json.gz"), Path(f"{stem}_memory.json.gz")
        recorded.export_chrome_trace(str(trace))
        curve = list(memory_curve(recorded.profiler.kineto_results.events()))  # type: ignore[union-attr]
        with gzip.open(memory, "wt") as file:
            json.dump({"traceEvents": counters(curve)}, file)
        Path(f"{stem}.txt").write_text(self._tables(recorded, curve))
        hints = [f"{trace} and {memory} (open them at https://ui.perfetto.dev)", f"top operators: {stem}.txt"]
        if self._device.type == "cuda":
            snapshot = f"{stem}_memory.pickle"
            torch.cuda.memory._dump_snapshot(snapshot)
            torch.cuda.memory._record_memory_history(enabled=None)
            hints.append(f"allocations: {snapshot} (open it at https://pytorch.org/memory_viz)")
        logger.info("profile of steps %d to %d: %s", self._first, self._last, "; ".join(hints))

    def _tables(self, recorded: profile, curve: list[tuple[int, str, int]]) -> str:
        """The top operators by their own time and memory, and the peak of memory."""
        device = "cuda" if self._device.type == "cuda" else "cpu"
        averages = recorded.key_averages()
        orders = {"time": f"self_{device}_time_total", "memory": f"self_{device}_memory_usage"}
        tables = [
            f"top operators by their own {what} on the {device}\n{averages.table(order, row_limit=ROWS)}"
            for what, order in orders.items()
        ]
        devices = sorted({place for _, place, _ in curve})
        peaks = {place: max(size for _, where, size in curve if where == place) for place in devices}
        lines = [
            f"peak memory of tensors on the {p} above the start: {b / MIB:.1f} MiB" for p, b in peaks.items()
        ]
        return "\n".join([*tables, *lines, ""])


def memory_curve(events: Iterable[Any]) -> Iterator[tuple[int, str, int]]:
    """The memory of tensors after each allocation and release, against the start of the record.

    Args:
        events: of Kineto.

    Yields:
        Time in ns, device type, bytes.
    """
    total: dict[str, int] = {}
    found = [event for event in events if event.name() == "[memory]"]
    for event in sorted(found, key=lambda event: event.start_ns()):
        place = event.device_type().name.lower()
        total[place] = total.get(place, 0) + event.nbytes()
        yield event.start_ns(), place, total[place]


def counters(curve: Iterable[tuple[int, str, int]]) -> list[dict[str, Any]]:
    """A memory curve as counters of a trace (Trace Event Format, ph C; ts in microseconds)."""
    return [
        {"ph": "C", "pid": 0, "name": f"{place} memory", "ts": ns / 1000, "args": {"MiB": size / MIB}}
        for ns, place, size in curve
    ]
