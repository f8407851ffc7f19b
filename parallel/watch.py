"""No rank waits for ever: every rank's heartbeat, and a verdict when one of them stands still or is gone.

Each rank posts to the store of the process group, every few tenths of a second, at which step and where in
the code its main thread is (`whereabouts`). A rank whose main thread has not moved for the stated time reads
what the others posted, names the one that all wait for, and ends; the others read the verdict and end too.
Two threads do it: one alone talks to the store, so that a store whose host stands still cannot silence both.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from parallel.collectives import gather_objects
from parallel.verdict import judge
from parallel.whereabouts import Place, Whereabouts

EARLY = 0.9  # of the stated time: before the process groups' own time-out
SLOW = 3.0  # times the stated time: what phases may take that are known to be slow
PREFIX = "watch"  # of its keys, where the store is shared
STORE_ERRORS = (RuntimeError, ValueError)  # torch's DistError is a RuntimeError


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Exit statuses that the watch ends a process with."""

    hang: int
    lost: int


class Watch:
    """One rank's part of the watch; `beat` tells it that the main thread gets on.

    Args:
        store: a connection that no one else uses.
        rank: of this process.
        world_size: ranks.
        timeout_s: how long a main thread may stand still.
        codes: to end with.
        hosts_store: whether the store lives in this process.
        at_end: called with the code and the line before the process ends.
    """

    def __init__(
        self,
        store: dist.Store,
        *,
        rank: int,
        world_size: int,
        timeout_s: float,
        codes: Codes,
        hosts_store: bool = False,
        at_end: Callable[[int, str], None] | None = None,
    ) -> None:
        self.rank, self.world_size, self.timeout_s, self.codes = rank, world_size, timeout_s, codes
        self._store, self.hosts_store, self.at_end = store, hosts_store, at_end
        self.interval_s = min(2.0, max(0.1, timeout_s / 20))
        self.step, self.phase_name, self._limit_s, self._since_s = (
            0,
            "start",
            SLOW * timeout_s,
            time.monotonic(),
        )
        self._whereabouts, self._posts = Whereabouts(), 0
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}  # status, when it last changed
        self._talked_s = time.monotonic()
        self._closed, self._ending = threading.Event(), threading.Lock()
        store.set(f"who/{rank}", json.dumps(identity()))
        for work in (self._talk, self._decide) if world_size > 1 else ():
            threading.Thread(target=work, name=f"watch{work.__name__}", daemon=True).start()

    def beat(self, step: int | None = None) -> None:
        """The main thread has got on."""
        self.step = self.step if step is None else step
        self._since_s = time.monotonic()

    @contextmanager
    def phase(self, name: str, limit_s: float | None = None) -> Iterator[None]:
        """The main thread is in a phase that may take longer, by default `SLOW` times the stated time."""
        before = self.phase_name, self._limit_s
        self.phase_name, self._limit_s = name, SLOW * self.timeout_s if limit_s is None else limit_s
        self.beat()
        try:
            yield
        finally:
            self.phase_name, self._limit_s = before
            self.beat()

    def begin(self, step: int) -> None:
        """A step is made, so the start is over: from here on the stated time holds outside of phases."""
        self.phase_name, self._limit_s = "train", self.timeout_s
        self.beat(step)

    def say_farewell(self, line: str) -> None:
        """Tell the others why this rank ends, so that they need not guess."""
        try:
            self._store.clone().set(f"words/{self.rank}", line)  # type: ignore[attr-defined]
        except STORE_ERRORS:
            sys.stderr.flush()  # the store went first: nobody is there to be told

    def close(self) -> None:
        """End the watch; this process goes on."""
        self._closed.set()

    # --- a connection is gone

    def find_lost(self, patience_s: float = 5.0) -> tuple[int, str]:
        """After a lost connection: the code to end with, and who is gone; "" where that has been said."""
        self._closed.set()
        give_up_s = time.monotonic() + patience_s
        while time.monotonic() < give_up_s:
            try:
                store = self._store.clone()  # type: ignore[attr-defined]
                if store.check(["verdict"]):
                    return int(json.loads(store.get("verdict"))["code"]), ""
                if any(store.check([f"words/{rank}"]) for rank in range(self.world_size)):
                    return self.codes.lost, ""
                lost = [rank for rank in range(self.world_size) if not self._lives(store, rank)]
                if lost and store.add("claims", 1) == 1:
                    return self.codes.lost, self._tell_lost(store, lost)
            except STORE_ERRORS:
                return self.codes.lost, "lost rank 0, which kept the store, or its node"
            time.sleep(0.05)
        line = f"rank {self.rank} lost its connection to another rank at step {self.step}"
        return self.codes.lost, line

    def _lives(self, store: dist.Store, rank: int) -> bool:
        key = f"who/{rank}"
        return rank == self.rank or not store.check([key]) or not is_gone(json.loads(store.get(key)))

    def _tell_lost(self, store: dist.Store, lost: list[int]) -> str:
        ranks = ", ".join(map(str, lost))
        last = _read(store, lost[0])
        where = f"; it was at step {last['step']}, in {last['place']}" if last else ""
        line = f"lost rank {ranks}: its process is gone without a word{where}"
        store.set("verdict", json.dumps({"code": self.codes.lost, "line": line}))
        return line

    # --- threads

    def status(self) -> dict[str, Any]:
        """What this rank posts of itself."""
        place, still_s = self._look()
        age_s = time.monotonic() - self._since_s
        return {
            "posts": self._posts,
            "step": self.step,
            "phase": self.phase_name,
            "limit_s": self._limit_s,
            "age_s": age_s,
            "still_s": min(still_s, age_s),
            "place": place.text,
            "is_collective": place.is_collective,
            "time_s": time.time(),
        }

    def _look(self) -> tuple[Place, float]:
        """Where the main thread is; a frame that cannot be read must not end the watch."""
        try:
            return self._whereabouts.look()
        except Exception as error:  # whatever it is, a thread that dies of it would leave a hang unseen
            age_s = time.monotonic() - self._since_s
            return Place(text=f"a place that cannot be read ({error})", is_collective=False), age_s

    def _talk(self) -> None:
        while not self._closed.wait(self.interval_s):
            try:
                self._posts += 1
                self._store.set(f"beat/{self.rank}", json.dumps(self.status()))
                if self._store.check(["verdict"]):
                    self._end(json.loads(self._store.get("verdict"))["code"])
                if time.monotonic() - self._since_s > self.timeout_s / 3:
                    self._listen()
                self._talked_s = time.monotonic()
            except STORE_ERRORS:  # its host is gone: the main thread will notice, or `_decide`
                return

    def _listen(self) -> None:
        """Read what the others posted."""
        now_s = time.monotonic()
        for rank in range(self.world_size):
            if rank == self.rank or (status := _read(self._store, rank)) is None:
                continue
            before = self._seen.get(rank)
            if before is None or before[0]["posts"] != status["posts"]:
                self._seen[rank] = status, now_s

    def _decide(self) -> None:
        while not self._closed.wait(self.interval_s / 2):
            status = self.status()
            if status["still_s"] < EARLY * max(self.timeout_s, status["limit_s"]):
                continue
            silence_s = max(3 * self.interval_s, self.timeout_s / 5)
            now_s = time.monotonic()
            if now_s - self._talked_s > silence_s:
                self._condemn(f"rank {self.rank}: {self._mute_store(status, now_s)}", "store")
            silent = {rank for rank, (_, at_s) in self._seen.items() if now_s - at_s > silence_s}
            heard = {rank: seen for rank, (seen, _) in self._seen.items()} | {self.rank: status}
            busy = (seen for rank, seen in heard.items() if rank not in silent and rank != self.rank)
            if any(seen["age_s"] < EARLY * seen["limit_s"] and not seen["is_collective"] for seen in busy):
                continue  # a rank that is awake, and whose phase may last
            self._condemn(judge(heard, silent, self.world_size), self._claim())

    def _mute_store(self, status: dict[str, Any], now_s: float) -> str:
        return (
            f"the process that keeps the store (rank 0, or what started it) has said nothing for "
            f"{now_s - self._talked_s:.0f} s; this rank waits at step {status['step']}, in {status['place']}"
        )

    def _claim(self) -> str:
        """Whether this rank is the first to judge, asked in a thread, for the store may never answer."""
        answer: list[int] = []

        def ask() -> None:
            answer.append(self._store.clone().add("claims", 1))  # type: ignore[attr-defined]

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(max(0.5, self.timeout_s * (1 - EARLY) / 2))
        return "store" if not answer else "first" if answer[0] == 1 else "later"

    def _condemn(self, line: str, claim: str) -> None:
        """Say the verdict, leave it for the others, and end."""
        if claim == "first":
            self._store.clone().set(  # type: ignore[attr-defined]
                "verdict", json.dumps({"code": self.codes.hang, "line": line})
            )
        if claim != "later":
            sys.stderr.write(f"HangError: {line}\n")
        self._end(self.codes.hang, line)

    def _end(self, code: int, line: str = "") -> None:
        with self._ending:
            if self._closed.is_set():
                return
            if self.at_end is not None:
                self.at_end(code, line)
            sys.stderr.flush()
            if self.hosts_store:
                time.sleep(2 * self.interval_s + 0.5)  # for the others to read the verdict
            os._exit(code)


def identity() -> dict[str, Any]:
    """Which process this is, so that others on its machine can tell whether it lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": start_time(os.getpid())}


def start_time(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def is_gone(who: dict[str, Any]) -> bool:
    """Whether a process is known to be gone: of another machine nothing is known."""
    return who["host"] == socket.gethostname() and start_time(who["pid"]) != who["start"]


def _read(store: dist.Store, rank: int) -> dict[str, Any] | None:
    key = f"beat/{rank}"
    return json.loads(store.get(key)) if store.check([key]) else None


def connect(store: dist.Store) -> dist.Store:
    """A connection of our own to the store of the default process group, apart from earlier ones."""
    name = gather_objects(uuid.uuid4().hex)[0]
    return dist.PrefixStore(f"{PREFIX}-{name}", store).clone()  # type: ignore[attr-defined]
