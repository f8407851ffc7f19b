"""The first act of the program: requests to stop wait, rather than end it, while it is being imported.

SIGUSR1 or SIGTERM in the seconds that torch and DeepSpeed take to load would end a rank at once, and with it
the job. Blocked, they wait until the program listens (`process/signals.py`). Nothing heavy is imported here.
"""

import signal

EARLY = (signal.SIGUSR1, signal.SIGTERM)


def hold_requests() -> None:
    """Requests to stop wait from now on; processes and threads made meanwhile inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, EARLY)


def release_requests() -> None:
    """Requests do again what they do by default; one that waited does it now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EARLY)
