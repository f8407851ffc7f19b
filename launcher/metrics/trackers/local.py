"""A tracker in the process of the rank, for what writes local files alone: no call raises."""

from collections.abc import Callable

from launcher.metrics.trackers.base import TrackedRun, Tracker


class LocalTracker:
    """One tracker of a session.

    Args:
        kind: its class.
        run: the session.
        on_failure: called once with the reason, when the tracker is switched off.
    """

    def __init__(self, kind: type[Tracker], run: TrackedRun, on_failure: Callable[[str], None]) -> None:
        self.is_off = False
        self._on_failure = on_failure
        self._tracker = kind()
        self.call("start", run)

    def call(self, method: str, *args: object) -> None:
        """Call a method of the tracker; an exception switches it off."""
        if self.is_off:
            return
        try:
            getattr(self._tracker, method)(*args)
        except Exception as error:
            self.is_off = True
            self._on_failure(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def close(self, deadline_s: float) -> None:
        """Do nothing: `end` has returned."""
