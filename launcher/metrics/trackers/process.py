"""The process of one tracker: `python -m launcher.metrics.trackers.process FD FD DIRECTORY --of RUN`.

RUN only shows in `ps` whose it is. This module and what it imports load no torch.

It reads calls from one pipe and answers over the other what `start` returned, or why the tracker failed. When
the rank is gone without a word, the pipe ends: the tracker then records that the session failed. DIRECTORY
has the temporary files of this process alone. It removes it, as does the rank, which may have to kill it.
"""

import atexit
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

from launcher.metrics.trackers.messages import Begin, Call, Ended, Failed, Started
from launcher.metrics.trackers.registry import tracker_class
from launcher.rundir.paths import replace_json

# they reach all processes of a job; the rank decides what follows, and ends this process
RANKS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def main(calls: Connection, answers: Connection) -> None:
    """Serve one tracker until its end."""
    for number in RANKS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        _serve(calls.recv(), calls, answers)
    except BaseException as error:  # SystemExit of a library too: the rank must learn of it
        text = " ".join(str(error).split())
        _answer(answers, Failed(f"{type(error).__name__}: {text}"))


def _answer(answers: Connection, answer: Started | Failed | Ended) -> None:
    with suppress(OSError):  # the rank is gone
        answers.send(answer)


def _serve(begin: Begin, calls: Connection, answers: Connection) -> None:
    tracker = tracker_class(begin.path)()
    state = dict(tracker.start(begin.run))
    begin.state_file.parent.mkdir(exist_ok=True)
    replace_json(begin.state_file, state)  # here, as the rank may be gone by now
    _answer(answers, Started(tracker.where()))
    for call in _received(calls, begin.run.tracking.end_timeout_s):
        getattr(tracker, call.method)(*call.args)
        if call.method != "end" and not calls.poll():
            tracker.flush()
    _answer(answers, Ended())


def _received(calls: Connection, end_timeout_s: float) -> Iterator[Call]:
    """The calls up to `end`, which is made up where the rank is gone without it."""
    while True:
        try:
            call = calls.recv()
        except (EOFError, OSError):
            call = Call("end", ("failed",))
            ending = threading.Timer(end_timeout_s, _give_up)  # nobody is left to end this process
            ending.daemon = True
            ending.start()
        yield call
        if call.method == "end":
            return


def _give_up() -> None:
    _remove_temporary()
    os._exit(1)


def _remove_temporary() -> None:
    shutil.rmtree(sys.argv[3], ignore_errors=True)


if __name__ == "__main__":
    atexit.register(_remove_temporary)  # the first to be registered is the last to be called
    main(Connection(int(sys.argv[1]), writable=False), Connection(int(sys.argv[2]), readable=False))
