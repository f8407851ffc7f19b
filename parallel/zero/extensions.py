"""DeepSpeed's compiled operators, built before the ranks meet, by one process, with a deadline.

torch's cache holds a plain file as its lock while it builds; a process that is killed leaves it there, and
every later start waits for it for ever (torch/utils/file_baton.py). So one process builds, ahead of the first
collective, in a cache of its own for these versions, under a `flock` that dies with it, and sweeps such
locks.
"""

import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO

from parallel.durable import lock_file

logger = logging.getLogger(__name__)

OFFLOADED = ("CPUAdamBuilder",)  # what an optimizer in host memory needs
LOAD_S = 30.0  # more than loading what is built takes
CACHE = "TORCH_EXTENSIONS_DIR"
BUILD = (
    "import sys; from deepspeed.ops import op_builder as b; [getattr(b, n)().load() for n in sys.argv[1:]]"
)


class ExtensionError(ValueError):
    """An operator could not be built; the message names it, the reason and the fix."""


def default_cache() -> Path:
    """A cache of this user for these very versions and this kind of processor."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "swin-moe" / "extensions"
    versions = "-".join([*(f"{n}{version(n)}" for n in ("torch", "deepspeed")), f"py{sys.version_info[1]}"])
    return root / f"{versions}-{platform.machine()}-{platform.node()}".replace("+", "_")


def prepare_extensions(names: Sequence[str], cache_dir: Path | None = None, deadline_s: float = 600) -> None:
    """Build DeepSpeed's operators where they are not built yet, and let this process find them.

    Any number of processes may call it: the first builds, the others wait for it.

    Args:
        names: of builders in deepspeed.ops.op_builder, such as "CPUAdamBuilder".
        cache_dir: where to; None is `default_cache`.
        deadline_s: for waiting and building.

    Raises:
        ExtensionError: it cannot be built, or not in time.
    """
    cache = cache_dir or default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    os.environ[CACHE] = str(cache)
    # the same ninja now and when the operator is loaded: another version of it builds everything anew
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    end_s = time.monotonic() + deadline_s
    with (cache / "builder").open("a+") as builder:
        _wait_for(builder, end_s, names, deadline_s)
        for lock in cache.glob("*/lock"):
            _sweep(lock, young_s=LOAD_S if any(cache.glob("*.built")) else 0.0)
        missing = [name for name in names if not (cache / f"{name}.built").exists()]
        if missing:
            _build(missing, max(0.0, end_s - time.monotonic()))
        for name in missing:
            (cache / f"{name}.built").touch()


def _wait_for(builder: IO[str], end_s: float, names: Sequence[str], deadline_s: float) -> None:
    """Take the lock of whoever builds, or wait for it."""
    while not lock_file(builder, wait=False):
        if time.monotonic() > end_s:
            raise ExtensionError(
                f"another process has been building {', '.join(names)} for {deadline_s:.0f} s "
                f"({builder.name}); end it, or build elsewhere: {CACHE}"
            )
        time.sleep(0.1)


def _sweep(lock: Path, young_s: float) -> None:
    """Remove a lock of torch's whose owner is dead.

    Nobody builds here but who holds our own lock. Who loads what is built takes torch's lock too, for a
    second or two: a young one is waited for.
    """
    with suppress(FileNotFoundError):
        while time.time() - lock.stat().st_mtime < young_s:
            time.sleep(0.1)
        lock.unlink()
        logger.info("removed %s, which a killed process left", lock)


def _build(names: Sequence[str], left_s: float) -> None:
    """Build in a process of its own, so that a deadline can end it with its compiler."""
    start_s, operators = time.monotonic(), ", ".join(names)
    logger.info(
        "building %s, once for this machine, in %s (about a minute, at most %.0f s)",
        *(operators, os.environ[CACHE], left_s),
    )
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, *names],
        env={**os.environ, "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=left_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise ExtensionError(f"{operators} took longer than {left_s:.0f} s to build") from None
    if process.returncode:
        errors = [line for line in out.splitlines() if "error" in line.lower()]
        reason = (errors or out.splitlines() or ["no reason"])[-1].strip()
        raise ExtensionError(f"{operators} cannot be built: {reason}; it needs a C++ compiler and ninja")
    logger.info("built %s in %.0f s", operators, time.monotonic() - start_s)
