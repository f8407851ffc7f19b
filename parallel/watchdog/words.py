"""How the watchdog describes a rank that is lost, in words that the post-mortem reads again; no torch."""

import re
from collections.abc import Mapping
from typing import Any

ENDED = "its process ended without a message"
LOST_STORE = "lost rank 0, which held the store, or its node"
WHY_LOST = re.compile(rf"{ENDED}|no heartbeat for \d+ s")  # what a known cause replaces


def no_heartbeat(seconds: float) -> str:
    """`no heartbeat for 31 s`."""
    return f"no heartbeat for {seconds:.0f} s"


def last_heartbeat(status: Mapping[str, Any] | None) -> str:
    """`; last heartbeat at step 7, in all_reduce (accumulator.py:99)`, to be appended to a line.

    Args:
        status: of a rank or of a run, with `step` and perhaps `place`; "" is returned without one.
    """
    if not status or "step" not in status:
        return ""
    place = f", in {status['place']}" if status.get("place") else ""
    return f"; last heartbeat at step {status['step']}{place}"
