"""A benchmark's ranks: processes of its own script on this machine, over gloo, one thread each."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence


def run_ranks(
    script: str, arguments: Sequence[Sequence[object]], limit_s: float, environment: dict[str, str]
) -> None:
    """Run one process a rank until all have ended; exits where one fails or hangs.

    Args:
        script: of the benchmark.
        arguments: of each rank.
        limit_s: seconds after which the ranks are taken to hang.
        environment: on top of this process's.
    """
    own = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu", **environment}
    ranks = [subprocess.Popen([sys.executable, script, *map(str, each)], env=own) for each in arguments]
    deadline = time.monotonic() + limit_s
    try:
        while any(process.poll() is None for process in ranks):
            failed = [rank for rank, process in enumerate(ranks) if process.poll() not in (None, 0)]
            if failed or time.monotonic() > deadline:
                sys.exit(f"rank {failed or '?'} of {len(ranks)} failed or hung: see above")
            time.sleep(0.2)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    if any(process.returncode for process in ranks):
        sys.exit("a rank failed: see above")
