"""Retries of I/O errors: exponential back-off with full jitter, under a deadline, then one clear error.

As in Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
"""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from data_shards.errors import DataError
from data_shards.storage.base import PermanentError
from data_shards.storage.telemetry import Telemetry

T = TypeVar("T")
FIRST_S, LONGEST_S = 0.1, 10.0
PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, PermanentError)


class Retries:
    """Runs an action until it succeeds, `deadline_s` seconds have passed, or `stop` is set.

    Permanent errors (no such file, no permission) are not retried.
    """

    def __init__(self, deadline_s: float, telemetry: Telemetry, stop: threading.Event | None = None) -> None:
        if deadline_s <= 0:
            raise DataError(f"deadline_s ({deadline_s}) must be above 0")
        self.deadline_s, self.telemetry = deadline_s, telemetry
        self.stop = stop or threading.Event()
        self._random = random.Random()  # not the global generator: the draws of a run must not see ours

    def __call__(self, action: Callable[[], T], what: Callable[[], str], fix: Callable[[], str] = str) -> T:
        """The result of `action`; DataError saying `what()`, the last error and `fix()`."""
        began, tries = time.monotonic(), 0
        while True:
            try:
                return action()
            except OSError as error:
                tries += 1
                delay_s = self._random.uniform(0, min(LONGEST_S, FIRST_S * 2**tries))
                spent_s = time.monotonic() - began
                reason = f"{what()}: {error.strerror or error}"
                if isinstance(error, PERMANENT):
                    raise DataError(f"{reason}{fix()}") from error
                if spent_s + delay_s > self.deadline_s or self.stop.wait(delay_s):
                    raise DataError(
                        f"{reason}; given up after {tries} tries in {spent_s:.1f} s{fix()}"
                    ) from error
                self.telemetry.add("retries")
