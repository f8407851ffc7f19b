"""Space in a cache directory that the ranks of one node share: a hard limit, and eviction by next use.

    DIR/.lock               held (flock) while usage is counted and space reserved
    DIR/.user-PID-TOKEN     one process's next shards in order; held (flock) while that process lives
    DIR/DATASET/.NAME.tmp   a shard being fetched; its full size is reserved when it is opened
    DIR/DATASET/NAME        a shard; held shared (flock) by a process that has it open; then never evicted

Locks end with their process, so a file whose lock can be taken has no owner.
"""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_shards.errors import DataError
from parallel.durable import is_at, lock_file

NEVER = 1 << 62  # the next use of a shard that no process has announced


class CacheSpace:
    """This process's view of one cache directory; DataError when it cannot be written or locked."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root, self.max_bytes = root, max_bytes
        self._user, self._handle = root / f".user-{os.getpid()}-{secrets.token_hex(4)}", -1
        try:
            root.mkdir(parents=True, exist_ok=True)
            with self.locked():
                self.sweep()
        except OSError as error:
            fix = "name a directory on a node-local disk, for example $SLURM_TMPDIR/shards"
            raise DataError(f"cache {root}: cannot be used ({error.strerror}); {fix}") from error

    def close(self) -> None:
        """Withdraw what this process announced; announcing again is allowed."""
        if self._handle >= 0:
            self._user.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory's lock, for a short time."""
        handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            lock_file(handle)
            yield
        finally:
            os.close(handle)

    def sweep(self) -> None:
        """Remove the temporaries and announcements of processes that have ended."""
        for path in [*self.root.glob("*/.*.tmp"), *self.root.glob(".user-*")]:
            remove_unheld(path)

    def announce(self, names: list[str]) -> None:
        """Announce which shards (as DATASET/NAME) this process reads next, soonest first.

        On a full disk the announcement is lost, and they are evicted earlier than they might be.
        """
        body = json.dumps(names).encode()
        with suppress(OSError), self.locked():
            if self._handle < 0:
                self._handle = os.open(self._user, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                lock_file(self._handle)
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, body, 0)

    def reserve(self, handle: int, size: int, need: int) -> bool:
        """Give the open temporary `handle` its full size within the limit, or return False.

        It evicts the shards of furthest next use first, and none that is needed sooner than `need`, the index
        of the new one in this process's own order.
        """
        with self.locked():
            used = self.used()
            for bytes_there, path in self._victims(need) if used + size > self.max_bytes else []:
                used -= bytes_there if remove_unheld(path) else 0
                if used + size <= self.max_bytes:
                    break
            if used + size > self.max_bytes:
                return False
            os.ftruncate(handle, size)
            return True

    def used(self) -> int:
        """Bytes of everything in the directory."""
        total = 0
        for folder in [self.root, *(path for path in self.root.iterdir() if path.is_dir())]:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        total += entry.stat().st_size if entry.is_file() else 0
        return total

    def _victims(self, need: int) -> list[tuple[int, Path]]:
        """The shards that may be evicted and their sizes: furthest next use first, then the oldest."""
        next_use = self._next_uses()
        victims = []
        for path in self.root.glob("*/[!.]*"):
            use = next_use.get(f"{path.parent.name}/{path.name.removesuffix('.damaged')}", NEVER)
            with suppress(FileNotFoundError):
                if use > need:
                    victims.append((-use, (status := path.stat()).st_mtime_ns, status.st_size, path))
        return [(size, path) for *_, size, path in sorted(victims)]

    def _next_uses(self) -> dict[str, int]:
        """How soon the first living process reads each shard that one of them announced."""
        uses: dict[str, int] = {}
        for path in self.root.glob(".user-*"):
            if path != self._user and remove_unheld(path):
                continue
            with suppress(OSError, ValueError):
                for i, name in enumerate(json.loads(path.read_text() or "[]")):
                    uses[name] = min(i, uses.get(name, NEVER))
        return uses


def remove_unheld(path: Path) -> bool:
    """Remove a file unless a process holds its lock; whether it is removed."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if lock_file(handle, wait=False) and is_at(handle, path):  # else another file has this name by now
            path.unlink(missing_ok=True)
            return True
        return False
    finally:
        os.close(handle)
