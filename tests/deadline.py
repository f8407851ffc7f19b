"""A deadline for other processes that a busy machine does not shorten."""

import time
from collections.abc import Iterable
from pathlib import Path


class Deadline:
    """Seconds that processes have, without those for which they were ready to run and had no processor.

    A process that hangs waits for no processor, and one that spins computes in between: each meets its
    deadline. Where Linux does not say how long a thread has waited, every second counts.

    Args:
        seconds: from now on.
        pids: of the processes, all alive.
    """

    def __init__(self, seconds: float, pids: Iterable[int]) -> None:
        self._seconds, self._start_s = seconds, time.monotonic()
        self._before = {thread: waited_s(thread) for pid in pids for thread in _threads(pid)}
        self._pids = {thread.parents[1] for thread in self._before}
        self._most_s = 0.0  # that a thread has waited, also one that has ended since

    def left_s(self) -> float:
        """Seconds that are left, 0 or less after the deadline."""
        left_s = self._seconds - (time.monotonic() - self._start_s)
        if left_s > 0:
            return left_s  # if not more
        for process in self._pids:
            for thread in process.glob("task/*"):
                self._most_s = max(self._most_s, waited_s(thread) - self._before.get(thread, 0.0))
        return left_s + self._most_s


def waited_s(thread: Path) -> float:
    """Seconds for which a thread, /proc/PID/task/TID, has been on the queue of a processor in its life."""
    try:
        return int((thread / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):  # it has ended, or the kernel does not count
        return 0.0


def _threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").glob("*"))
