"""A line that says how far a long command is: a bar, the rate of late, the time left."""

import sys
import time
from collections import deque
from collections.abc import Callable

BAR = 24  # characters
WINDOW_S = 30.0  # over which the rate is taken: shards kept from an earlier run would flatter a mean


def progress_line(name: str, unit: str = "samples") -> Callable[[int, int], None]:
    """A `progress(done, total)` on stderr: a line rewritten on a terminal, or one every ten seconds in a log.

    `train [######..................] 25% 320000/1281167 samples, 5210 a second, 3:04 left`
    """
    began = time.perf_counter()
    interval_s, end = (0.2, "\r") if sys.stderr.isatty() else (10.0, "\n")
    seen: deque[tuple[float, int]] = deque([(began, 0)])
    shown = began

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.perf_counter()
        seen.append((now, done))
        while len(seen) > 2 and now - seen[1][0] > WINDOW_S:
            seen.popleft()
        if done < total and now - shown < interval_s:
            return
        shown = now
        since = (began, 0) if done == total else seen[0]
        text = f"{name} {line(done, total, (done - since[1]) / max(now - since[0], 1e-6), unit)} "
        print(text, end="\n" if done == total else end, file=sys.stderr, flush=True)

    return show


def line(done: int, total: int, rate: float, unit: str) -> str:
    """Bar, share, counts, rate and the time left, or nothing of the last when all is done."""
    share = done / max(total, 1)
    bar = ("#" * int(share * BAR)).ljust(BAR, ".")
    left = f", {duration((total - done) / rate)} left" if done < total and rate > 0 else ""
    return (
        f"[{bar}] {100 * share:.0f}% {done}/{total} {unit}, {rate:.{0 if rate >= 10 else 1}f} a second{left}"
    )


def duration(seconds: float) -> str:
    """`1:02:03`, `2:03`, `0:03`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"
