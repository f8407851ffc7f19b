"""What an exception means for the run: which of our errors it is, in one line, or a bug."""

import resource
from collections.abc import Iterator

import torch

from launcher.errors import HangError, HardwareError, LostRankError, MemoryShortError, RunError
from parallel.ranks.identity import node_name
from parallel.watchdog.watch import Watchdog

MEMORY = (
    "defaultcpuallocator",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
)
CONNECTION = (
    "gloo/transport",
    "connection closed by peer",
    "connection reset by peer",
    "remote process exited",
)
HARDWARE = (  # CUDA's errors of a GPU, its memory or its links; an illegal memory access is a bug of a kernel
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "nvlink error was detected",
    "hardware stack error",
    "unspecified launch failure",
    "gpu is lost",
    "fallen off the bus",
    "unable to determine the device handle",
)
TIMEOUT = ("timed out waiting", "watchdog caught collective operation timeout", "wait timeout")
ADVICE = "lower train.micro_batch_size{size}, raise parallel.zero_stage{stage}, or take more ranks"


def as_run_error(error: BaseException, watch: Watchdog, size: int, stage: int) -> RunError | None:
    """The error of ours that an exception amounts to; None for a bug.

    Args:
        error: what ended the work.
        watch: which knows the step and the other ranks.
        size: train.micro_batch_size.
        stage: parallel.zero_stage.
    """
    if isinstance(error, RunError) and not _is_of_memory(error):
        return error
    if _is_of_memory(error):
        advice = ADVICE.format(size=f" ({size})", stage=f" ({stage})")
        return MemoryShortError(
            f"rank {watch.rank} is out of memory at step {watch.step}, phase {watch.phase_name}, having used "
            f"{_peak_gib():.2f} GiB: {_first_line(error)}; {advice}"
        )
    text = str(error).lower()
    if isinstance(error, RuntimeError | OSError):
        if any(mark in text for mark in HARDWARE):
            return HardwareError(
                f"rank {watch.rank} (node {node_name()}), step {watch.step}: its GPU failed: "
                f"{_first_line(error)}; look at `nvidia-smi -q` and `dmesg` there"
            )
        if any(mark in text for mark in TIMEOUT):
            return HangError(f"rank {watch.rank}, step {watch.step}: {_first_line(error)}")
        if any(mark in text for mark in CONNECTION):
            code, line = watch.find_lost_rank()
            return HangError(line) if code == HangError.code else LostRankError(line)
    return None


def in_one_line(error: BaseException) -> str:
    """A message without the traceback that torch's checkpoints put into theirs: its beginning and its end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cut = next((i for i, line in enumerate(lines) if "Traceback" in line), len(lines))
    return " ".join(dict.fromkeys([*lines[:cut], *lines[-1:]]))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_of_memory(error: BaseException) -> bool:
    return any(
        isinstance(cause, MemoryError | torch.OutOfMemoryError)
        or (isinstance(cause, RuntimeError | OSError) and any(mark in str(cause).lower() for mark in MEMORY))
        for cause in _causes(error)
    )


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _peak_gib() -> float:
    """Largest resident size that this process ever had, and on a GPU the largest allocation there."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return max(resident, torch.cuda.max_memory_allocated() / 2**30) if torch.cuda.is_available() else resident
