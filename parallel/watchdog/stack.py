"""Samples the stack of a process: in which collective it is, called from where, and since when.

A stack is read in one call of C code, which no other Python code can interrupt: walking it frame by frame
lets other threads run in between, and in CPython 3.11 a frame that ended meanwhile has crashed the process
(PyFrame_GetBack). `faulthandler` is no way out: it crashes on a thread that is just being made.
"""

import linecache
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from operator import call, itemgetter
from types import FrameType

COLLECTIVES = ("torch.distributed", "deepspeed.comm")  # modules whose functions wait for other ranks
BETWEEN = ("torch", "deepspeed.utils", "deepspeed.runtime.utils", "contextlib", "functools")
OURS = ("launcher", "parallel", "swin_moe", "data_shards")
READS = ("parallel.ranks.host", "read")  # module and function: a wait for the device, and so for other ranks
# With NCCL a collective only enters the device's queue. The host then waits in a read, in a synchronization,
# or in whatever it wanted to launch when the queue was full. A thread that stands still in one of these
# modules waits for the device; torch.serialization, the compilers and data loading are not among them.
DEVICE = (
    *("torch.cuda", "torch.nn", "torch._tensor", "torch.autograd", "torch.functional", "torch.optim"),
    *("torch._ops", "torch.utils.checkpoint", "deepspeed.runtime", "deepspeed.utils", "swin_moe"),
)
ASYNC = {
    "receive": "all_to_all_single"
}  # what a wait in parallel/ranks/collectives.py is for, by its function


@dataclass(frozen=True, kw_only=True)
class CodeLocation:
    """Where a thread is: `all_reduce (launcher/metrics/accumulator.py:99)`."""

    text: str
    is_collective: bool


class StackSampler:
    """Samples where the main thread is, and for how long it has not moved.

    Args:
        waits_for_device: with NCCL: a thread that stands in torch's or DeepSpeed's code waits for the device.
    """

    def __init__(self, *, waits_for_device: bool = False) -> None:
        self._waits_for_device = waits_for_device
        self._thread = threading.main_thread().ident
        self._mark: tuple[tuple[int, int], ...] = ()
        self._since_s = time.monotonic()

    def sample(self) -> tuple[CodeLocation, float]:
        """The location now, and the seconds since the main thread was first seen at this instruction."""
        stack = stack_of(self._thread or 0)
        mark = tuple((id(frame), frame.f_lasti) for frame in stack[:4])
        now_s = time.monotonic()
        if mark != self._mark:
            self._mark, self._since_s = mark, now_s
        place = location_of(stack, waits_for_device=self._waits_for_device)
        if _module(stack[0]).startswith("torch.autograd"):
            # on a GPU a backward, and what it exchanges, runs on autograd's own threads
            others = (stack_of(thread) for thread in sys._current_frames() if thread != self._thread)
            locations = (location_of(o, waits_for_device=self._waits_for_device) for o in others if o)
            place = next((other for other in locations if other.is_collective), place)
        return place, now_s - self._since_s


def stack_of(thread: int) -> list[FrameType]:
    """The frames of a thread, from the innermost outwards; none where it is gone."""
    innermost = map(itemgetter(thread), map(call, (sys._current_frames,)))
    frames: list[FrameType] = []
    with suppress(AttributeError, KeyError):  # None, beyond the outermost, has no f_back
        frames.extend(accumulate(chain(innermost, repeat("f_back")), getattr))
    return [frame for frame in frames if frame is not None]


def location_of(stack: list[FrameType], *, waits_for_device: bool = False) -> CodeLocation:
    """The location of a thread by its frames, from the innermost outwards."""
    if (_module(stack[0]), stack[0].f_code.co_name) == READS:
        return CodeLocation(text=f"read ({_line(stack[min(1, len(stack) - 1)])})", is_collective=True)
    caller = next((f for f in stack if not _is_of(f, (*COLLECTIVES, *BETWEEN))), stack[-1])
    inner = stack[: stack.index(caller)]
    names = [f.f_code.co_name for f in inner if _is_of(f, COLLECTIVES) and f.f_code.co_name != "wrapper"]
    names = [name for name in names if not name.startswith("_") and "wrapper" not in name]
    if names:  # the outermost is what the caller wrote
        return CodeLocation(text=f"{names[-1]} ({_line(caller)})", is_collective=True)
    if not inner and ".wait()" in linecache.getline(caller.f_code.co_filename, _number(caller)):
        name = ASYNC.get(caller.f_code.co_name, "wait")
        return CodeLocation(text=f"{name} ({_line(caller)})", is_collective=True)
    ours = next((f for f in stack if _is_of(f, OURS)), stack[0])
    is_wait = waits_for_device and _is_of(stack[0], DEVICE)
    return CodeLocation(text=f"{ours.f_code.co_name} ({_line(ours)})", is_collective=is_wait)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_of(frame: FrameType, packages: tuple[str, ...]) -> bool:
    module = _module(frame)
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _line(frame: FrameType) -> str:
    """`parallel/ranks/collectives.py:57`: the file by its module's name, wherever it is installed."""
    module = _module(frame)
    path = frame.f_code.co_filename
    name = f"{module.replace('.', '/')}.py" if "." in module else "/".join(path.split("/")[-2:])
    return f"{name}:{_number(frame)}"


def _number(frame: FrameType) -> int:
    """The line; a frame may be between two lines, and then has none (typeshed does not know)."""
    return frame.f_lineno or frame.f_code.co_firstlineno
