"""The options of a rank's watchdog."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LOST_S = 60.0  # of silence, with NCCL: a collective with a dead rank does not return, nor raise


@dataclass(frozen=True, kw_only=True)
class WatchdogOptions:
    """How the watchdog of a rank works.

    Args:
        timeout_s: how long a main thread may stand still.
        hang_code: exit status where ranks wait for one that stands still.
        lost_code: exit status where a rank is gone.
        hosts_store: whether the store lives in this process.
        listen_s: how often to read what the others posted; None: only when this main thread stands still.
        nccl: whether collectives run on the device: then nothing tells the host that another rank is dead.
        lost_s: silence after which a rank is lost, with NCCL.
        clock: monotonic seconds.
        end_process: ends this process with a status.
    """

    timeout_s: float
    hang_code: int
    lost_code: int
    hosts_store: bool = False
    listen_s: float | None = None
    nccl: bool = False
    lost_s: float = LOST_S
    clock: Callable[[], float] = time.monotonic
    end_process: Callable[[int], Any] = os._exit
