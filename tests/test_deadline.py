"""Deadlines of processes that wait for a processor, and of those that do not."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.deadline import Deadline, waited_s

LOOK_S = 0.6


@contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """A process that does nothing but this, on the first processor that this one may use."""
    if (pid := os.fork()) == 0:
        try:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            work()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def spin() -> None:
    while True:
        pass


def spin_politely() -> None:
    os.nice(5)
    spin()


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel has no CONFIG_SCHED_INFO")
def test_what_waits_for_a_processor_has_its_seconds_later() -> None:
    """Beside another at a nice value 5 lower a process gets a quarter of a processor, and waits else."""
    with ExitStack() as processes:
        processes.enter_context(child(spin))
        pid = processes.enter_context(child(spin_politely))
        time.sleep(0.1)  # it has become polite
        thread = Path(f"/proc/{pid}/task/{pid}")
        start_s, before = time.monotonic(), waited_s(thread)
        deadline = Deadline(LOOK_S, [pid])
        made_s, after = time.monotonic(), waited_s(thread)
        while (elapsed_s := time.monotonic() - start_s) < LOOK_S or waited_s(thread) - before < elapsed_s / 2:
            time.sleep(0.1)
            assert elapsed_s < 60, "it never waited"
        least, early_s = waited_s(thread) - after, time.monotonic()
        left_s = deadline.left_s()
        most, late_s = waited_s(thread) - before, time.monotonic()
    assert LOOK_S - (late_s - start_s) + least <= left_s <= LOOK_S - (early_s - made_s) + most


def test_what_hangs_has_no_more_than_its_seconds() -> None:
    with child(signal.pause) as pid:
        time.sleep(0.1)  # it sleeps
        deadline = Deadline(LOOK_S, [pid])
        assert LOOK_S / 2 < deadline.left_s() <= LOOK_S
        time.sleep(LOOK_S)
        assert deadline.left_s() <= 0.05  # it may have been woken and have waited
