"""A tracker in a process of its own, as the rank sees it: no call raises, and none waits for the tracker.

Libraries of trackers start threads, processes and exit handlers, wait for servers, and may crash. In a
process of its own none of it can hold up a rank: a thread passes the calls on, and what blocks is killed.
"""

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe

from launcher.metrics.trackers.base import TrackedRun
from launcher.metrics.trackers.messages import Begin, Call, Ended, Failed, Started

MOST_WAITING = 20_000  # calls; a tracker that is so far behind will not catch up
MODULE = "launcher.metrics.trackers.process"


class RemoteTracker:
    """One tracker of a session.

    Args:
        begin: the tracker and the session.
        on_start: called once when the tracker has started.
        on_failure: called once with the reason, when the tracker is switched off.
    """

    def __init__(
        self,
        begin: Begin,
        on_start: Callable[[Started], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self.is_off = self._ended = False
        self._on_start, self._on_failure = on_start, on_failure
        self._waiting: queue.Queue[Call | None] = queue.Queue(MOST_WAITING)
        self._reading = threading.RLock()
        self._start_process(begin.run)
        threading.Thread(target=self._pass_on, args=(begin,), name="tracker", daemon=True).start()

    def call(self, method: str, *args: object) -> None:
        """Call a method of the tracker in its process, as soon as it has time."""
        self._read_answers()
        if self.is_off:
            return
        try:
            self._waiting.put_nowait(Call(method, args))
        except queue.Full:
            self._switch_off(f"it is {MOST_WAITING} calls behind")

    def close(self, deadline_s: float) -> None:
        """Wait until the tracker has everything; `end` was called.

        Args:
            deadline_s: by the monotonic clock; a tracker that is not done then is killed.
        """
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline_s - time.monotonic()))
        self._read_answers()
        if not self._ended:
            self._switch_off("it did not end in time")
        self._kill()

    def _start_process(self, run: TrackedRun) -> None:
        theirs, self._calls = Pipe(duplex=False)
        self._answers, answers = Pipe(duplex=False)
        handles = theirs.fileno(), answers.fileno()
        places = [path or os.getcwd() for path in sys.path]
        self._temporary = _temporary_directory()
        own = {
            "PYTHONPATH": os.pathsep.join(places),  # a tracker of a package found here
            "TMPDIR": self._temporary,
        }
        command = sys.executable, "-P", "-m", MODULE
        self._process = subprocess.Popen(
            [*command, *map(str, handles), self._temporary, "--of", str(run.directory)],
            pass_fds=handles,
            stdin=subprocess.DEVNULL,  # nothing may ask for a password
            stdout=subprocess.DEVNULL,
            env=os.environ | own,
            start_new_session=True,
        )
        theirs.close()
        answers.close()

    def _pass_on(self, begin: Begin) -> None:
        """In a thread: write the calls to the pipe, which is full while the tracker is busy."""
        with suppress(OSError):  # the process is gone, which `_read_answers` sees
            self._calls.send(begin)
            while (call := self._waiting.get()) is not None:
                self._calls.send(call)
                if call.method == "end":
                    return

    def _read_answers(self) -> None:
        """Take what the process has answered so far, without waiting for more."""
        with self._reading:
            try:
                while not (self.is_off or self._ended) and self._answers.poll():
                    self._take(self._answers.recv())
            except (EOFError, OSError):
                self._switch_off(f"its process ended with status {self._status()}")
            except Exception as error:  # an answer that is none
                self._switch_off(f"{type(error).__name__}: {error}")

    def _status(self) -> int | None:
        """The exit status of the process, which has closed its pipe."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(1.0)
        return None

    def _take(self, answer: Started | Failed | Ended) -> None:
        match answer:
            case Started():
                self._on_start(answer)
            case Failed(reason):
                self._switch_off(reason)
            case Ended():
                self._ended = True

    def _switch_off(self, reason: str) -> None:
        if self.is_off:
            return
        self.is_off = True
        self._kill()
        self._on_failure(reason)

    def _kill(self) -> None:
        """End the process, those that it started, and the thread that writes to it."""
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()
        self._waiting.put_nowait(None)


def _temporary_directory() -> str:
    """For a tracker alone: libraries remove their files at their exit, which a kill does not let them reach.

    Empty where none can be made, as on a full disk: the tracker then uses the default one, or says why not.
    """
    with suppress(OSError):
        return tempfile.mkdtemp(prefix="swin-moe-tracker-")
    return ""
