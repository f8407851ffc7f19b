"""The quarantine: bad samples, recorded in a file for people, and counted for the run.

The file has one line of JSON per bad sample: time, host, position, shard, row, key, member, byte and reason.
Another line follows if a thread then meets it at an earlier position. The file only records: every reader
decides by the bytes of a sample whether it is bad. So the sample at a position never depends on which rank
met a bad one first, and a repaired sample is read again.
"""

import json
import os
import socket
import threading
import time
from bisect import bisect_right
from collections import Counter
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.stream.reader import SampleError
from parallel.durable import lock_file

LEAST, FRACTION = 10, 1e-5  # more bad samples than max(LEAST, FRACTION * N) abort the run
RECENT, RECENT_MOST = 10_000, 10  # and so do more than 0.1 % of any 10,000 positions

Sample = tuple[str, int]  # shard, row


class Quarantine:
    """The bad samples of one split. `path` None keeps them in memory; ranks and threads share a file.

    The position of a sample is the first at which it was met. The digest of a state covers the positions
    below its own.
    """

    def __init__(self, path: str | Path | None, manifest: Manifest) -> None:
        self.path = Path(path) if path is not None else None
        self.limit = max(LEAST, int(FRACTION * manifest.samples))
        self._manifest, self._data = manifest.digest[:16], f"{manifest.name}/{manifest.split}"
        self._lock = threading.Lock()
        self._first: dict[Sample, int] = {}  # the first position, on any rank
        self._latest: dict[Sample, int] = {}
        self._notices: set[tuple[str, str]] = set()
        with self._lock:
            self._read()

    def add(self, error: SampleError, position: int) -> bool:
        """Record a bad sample met at `position`; whether it is new to all ranks.

        DataError, naming the shard, when there are now more than allowed.
        """
        sample = error.shard, error.row
        with self._lock:
            if (new := position < self._first.get(sample, position + 1)) and self.path:
                new = self._append(sample, position, error.fields())
            known = sample in self._first
            self._first[sample] = min(position, self._first.get(sample, position))
            self._latest[sample] = max(position, self._latest.get(sample, position))
            self._check(error)
        return new and not known

    def notice(self, shard: str, what: str) -> None:
        """Record, once, damage that affects no sample."""
        with self._lock:
            if (shard, what) not in self._notices and self.path:
                self._append(None, None, {"shard": shard, "notice": what})
            self._notices.add((shard, what))

    def count(self, samples: int | None = None) -> int:
        """The number of bad samples, or of those met at positions below `samples`; the file is read again."""
        return len(self._below(samples))

    def digest(self, samples: int) -> str:
        """SHA-256 of the bad samples met at positions below `samples`: the same on every rank."""
        return sha256(json.dumps(self._below(samples)).encode()).hexdigest()

    def recent(self, samples: int) -> int:
        """Bad samples that this process met at the RECENT positions before `samples`; for summing."""
        with self._lock:
            return sum(samples - RECENT <= position < samples for position in self._latest.values())

    def check_recent(self, bad: int) -> None:
        """DataError when `bad`, the sum of `recent` over the ranks, is more than allowed."""
        if bad > RECENT_MOST:
            raise DataError(self._verdict(f"{bad} bad samples in {RECENT} positions (at most {RECENT_MOST})"))

    def _below(self, samples: int | None) -> list[Sample]:
        with self._lock:
            self._read()
            return sorted(s for s, first in self._first.items() if samples is None or first < samples)

    def _check(self, error: SampleError) -> None:
        if len(self._first) > self.limit:
            most = f"{len(self._first)} bad samples (at most max({LEAST}, {FRACTION:g} x N) = {self.limit})"
            raise DataError(f"{error}\n{self._verdict(most)}") from error
        positions = sorted(self._latest.values())
        near = max(i + 1 - bisect_right(positions, p - RECENT) for i, p in enumerate(positions))
        if near > RECENT_MOST:
            most = f"{near} bad samples in {RECENT} positions (at most {RECENT_MOST})"
            raise DataError(f"{error}\n{self._verdict(most)}") from error

    def _verdict(self, reason: str) -> str:
        worst = ", ".join(
            f"{shard} ({n})" for shard, n in Counter(shard for shard, _ in self._first).most_common(5)
        )
        forget = f", delete {self.path}" if self.path else ""
        fix = f"repair them (`swin-moe shards verify` names all){forget} and resume"
        return f"{self._data}: {reason}, most in {worst}; {fix}"

    def _read(self) -> None:
        try:
            if self.path:
                self._take(self.path.read_bytes())
        except FileNotFoundError:
            pass
        except OSError as error:
            raise DataError(f"quarantine {self.path}: cannot be read ({error.strerror})") from error

    def _take(self, body: bytes) -> None:
        """Merge the file's lines; of torn lines and other data sets nothing is taken."""
        for line in body.splitlines():
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                fields = json.loads(line)
                if fields.get("manifest") != self._manifest:
                    continue
                if "notice" in fields:
                    self._notices.add((fields["shard"], fields["notice"]))
                    continue
                sample, position = (str(fields["shard"]), int(fields["row"])), int(fields["position"])
                self._first[sample] = min(position, self._first.get(sample, position))
                self._latest.setdefault(sample, position)

    def _append(self, sample: Sample | None, position: int | None, fields: dict[str, Any]) -> bool:
        """Append one line unless another rank wrote the like; one writer at a time, complete lines only."""
        assert self.path
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                with suppress(OSError):  # a file system without locks: appending complete lines must suffice
                    lock_file(handle)
                body = os.pread(handle, os.fstat(handle).st_size, 0)
                self._take(body)
                if sample and position is not None and self._first.get(sample, position + 1) <= position:
                    return False
                torn = b"" if body.endswith(b"\n") or not body else b"\n"
                os.write(handle, torn + self._line(position, fields))
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise DataError(f"quarantine {self.path}: cannot be written ({error.strerror})") from error
        return True

    def _line(self, position: int | None, fields: dict[str, Any]) -> bytes:
        when = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "host": socket.gethostname()}
        at = {} if position is None else {"position": position}
        line = when | {"data": self._data, "manifest": self._manifest} | fields | at
        return json.dumps(line).encode() + b"\n"
