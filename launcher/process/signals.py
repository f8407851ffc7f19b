"""Stop requests: SIGUSR1, SIGTERM and SIGINT set a flag; a second SIGTERM or SIGINT ends the process at once.

A handler in Python runs only between two instructions of the main thread, so never while that waits in a
collective. The C handler writes the signal's number to a pipe at once (`signal.set_wakeup_fd`), and a thread
reads it there.

While a program imports torch and DeepSpeed, which takes seconds, its signals are blocked. They wait until it
listens, instead of ending a rank and with it the job. So nothing heavy is imported here.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
BLOCKED = (signal.SIGUSR1, signal.SIGTERM)  # during the imports
SAME_S = 1.0  # a signal sent to every process and also passed on arrives twice; that is one request


def block_signals() -> None:
    """Let stop requests wait from now on. Processes and threads that start meanwhile inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)


def unblock_signals() -> None:
    """Let stop requests do again what they do by default. One that waited does it now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)


class StopRequest:
    """Whether, by which signal and when this process was requested to stop; a context in which it listens.

    Args:
        at_request: called in a thread with every signal that is a request of its own.
        at_once: called in a thread with the signal that is to end the process now.
    """

    def __init__(
        self,
        at_request: Callable[[signal.Signals], None] | None = None,
        at_once: Callable[[signal.Signals], None] | None = None,
    ) -> None:
        self.signal: signal.Signals | None = None
        self.since_s = 0.0  # monotonic
        self._at_request, self._at_once = at_request, at_once or _exit
        self._ending_s: float | None = None  # when the first signal of END_SIGNALS came
        self._before: dict[signal.Signals, Any] = {}

    @property
    def is_set(self) -> bool:
        """Whether this process was requested to stop."""
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._fd_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(self._reader,), name="stop", daemon=True).start()
        self._before = {number: signal.signal(number, _ignore) for number in STOP_SIGNALS}
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, STOP_SIGNALS
        )  # `launcher/process/local_launcher.py` starts ranks with them blocked
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._writer)  # and so the thread ends

    def _listen(self, reader: int) -> None:
        while data := os.read(reader, 64):
            for number in data:
                if number in STOP_SIGNALS:
                    self._take(signal.Signals(number))
        os.close(reader)

    def _take(self, number: signal.Signals) -> None:
        now_s = time.monotonic()
        if number in END_SIGNALS:
            if self._ending_s is not None and now_s - self._ending_s > SAME_S:
                self._at_once(number)
            self._ending_s = self._ending_s or now_s
        if self.signal is None:
            self.signal, self.since_s = number, now_s
            if self._at_request:
                self._at_request(number)


def _ignore(number: int, frame: Any) -> None:
    """A handler of Python's must be there for the pipe to be written to."""


def _exit(number: signal.Signals) -> None:
    os._exit(128 + number)
