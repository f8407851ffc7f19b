"""No rank waits for ever: every rank's heartbeat, and a verdict when one of them stands still or is gone.

Each rank posts to the store of the process group, every few tenths of a second, at which step and where in
the code its main thread is (`whereabouts`). A rank whose main thread has not moved for the stated time reads
what the others posted, names the one that all wait for, and ends; the others read the verdict and end too.
Two threads do it: one alone talks to the store, so that a store whose host stands still cannot silence both.
"""

import json
import math
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from parallel.ranks.collectives import gather_objects
from parallel.ranks.identity import identity, node_name
from parallel.watchdog.diagnosis import judge
from parallel.watchdog.lost import Search
from parallel.watchdog.stack import Place, Whereabouts
from parallel.watchdog.status import STORE_ERRORS, read_posts

EARLY = 0.9  # of the stated time: before the process groups' own time-out
SLOW = 3.0  # times the stated time: what phases may take that are known to be slow
LOST_S = 60.0  # of silence, with NCCL: a collective with a dead rank does not return, nor raise
AT_END_S = 5.0
TOGETHER_S = 10.0  # for rank 0 to write everything down
PREFIX = "watch"  # of its keys, where the store is shared
NCCL = "nccl"  # the key that is there where collectives run on GPUs


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
        at_end: called with the code and the line before the process ends, for `AT_END_S` at most.
        listen_s: how often to read what the others posted; None: when this main thread stands still.
        nccl: whether collectives run on the device: then nothing tells the host that another rank is dead.
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
        listen_s: float | None = None,
        nccl: bool = False,
    ) -> None:
        self.rank, self.world_size, self.timeout_s, self.codes = rank, world_size, timeout_s, codes
        self._store, self.hosts_store, self.at_end, self._listen_s = store, hosts_store, at_end, listen_s
        self.verdict = ""  # what this rank or another found out about the end of all
        self.interval_s = min(2.0, max(0.1, timeout_s / 20))
        self.step, self.phase_name = 0, "start"
        self._limit_s, self._since_s = SLOW * timeout_s, time.monotonic()
        self._whereabouts, self._posts = Whereabouts(waits_for_device=nccl), 0
        self.nccl, self._lost_s = nccl, LOST_S if nccl else math.inf
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}  # status, when it last changed
        self._who: dict[int, dict[str, Any]] = {}
        self._listened_s = -math.inf
        self._talked_s = time.monotonic()
        self._closed, self._ending = threading.Event(), threading.Lock()
        store.set(f"who/{rank}", json.dumps(identity() | {"node": node_name()}))
        store.set(NCCL, "") if nccl else None
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
            self._store.clone().set(f"words/{self.rank}", line)
        except STORE_ERRORS:
            sys.stderr.flush()  # the store went first: nobody is there to be told

    def close(self) -> None:
        """End the watch; this process goes on."""
        self._closed.set()

    def go_after_first(self) -> None:
        """Return when rank 0 has come here too, after `TOGETHER_S` at the latest.

        The launcher may kill the other ranks as soon as one has ended, and rank 0 writes for all.
        """
        if self.world_size > 1:
            meeting = threading.Thread(target=self._meet_first, daemon=True)  # a store may never answer
            meeting.start()
            meeting.join(TOGETHER_S)

    def _meet_first(self) -> None:
        try:
            store = self._store.clone()
            if self.rank == 0:
                store.set("written", "")
            else:
                store.wait(["written"], timedelta(seconds=TOGETHER_S))
        except STORE_ERRORS:
            return  # rank 0 kept the store and is gone: it has written

    def roll_call(self) -> list[dict[str, Any]]:
        """Each rank's node, process, step, phase and place, and the seconds since nothing new was heard."""
        now_s = time.monotonic()
        seen = {**self._seen, self.rank: (self.status(), now_s)}
        who = {**self._who, self.rank: identity() | {"node": node_name()}}
        return [
            {
                "rank": rank,
                **{name: who.get(rank, {}).get(name) for name in ("node", "pid")},
                **{name: status[name] for name in ("step", "phase", "place", "is_collective")},
                "still_s": round(status["still_s"], 1),
                "age_s": round(now_s - at_s, 1),
            }
            for rank, (status, at_s) in sorted(seen.items())
        ]

    # --- a connection is gone

    def find_lost(self, patience_s: float = 5.0) -> tuple[int, str]:
        """After a lost connection: the code to end with, and who is gone; "" where that has been said."""
        self._closed.set()
        try:
            store = self._store.clone()
        except STORE_ERRORS:
            return self.codes.lost, "lost rank 0, which kept the store, or its node"
        code, self.verdict, is_said = Search(store, self.rank, self.world_size, self.codes.lost).find(
            patience_s
        )
        line = self.verdict or f"rank {self.rank} lost its connection to another rank at step {self.step}"
        return self.codes.lost if code is None else code, "" if is_said else line

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
                    verdict = json.loads(self._store.get("verdict"))
                    self._end(verdict["code"], verdict["line"])
                if self._is_to_listen():
                    self._listen()
                self._talked_s = time.monotonic()
            except STORE_ERRORS:  # its host is gone: the main thread will notice, or `_decide`
                return

    def _is_to_listen(self) -> bool:
        now_s = time.monotonic()
        is_new = len(self._seen) < self.world_size - 1
        is_due = self._listen_s is not None and (is_new or now_s - self._listened_s > self._listen_s)
        return is_due or now_s - self._since_s > self.timeout_s / 3

    def _listen(self) -> None:
        """Read what the others posted."""
        now_s = self._listened_s = time.monotonic()
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        if self._listen_s is not None:
            self._who |= read_posts(self._store, "who", [rank for rank in others if rank not in self._who])
        for rank, status in read_posts(self._store, "beat", others).items():
            before = self._seen.get(rank)
            if before is None or before[0]["posts"] != status["posts"]:
                self._seen[rank] = status, now_s

    def _decide(self) -> None:
        while not self._closed.wait(self.interval_s / 2):
            status, now_s = self.status(), time.monotonic()
            is_late = status["still_s"] >= EARLY * max(self.timeout_s, status["limit_s"])
            if not (is_late or (status["is_collective"] and status["still_s"] > self._lost_s / 2)):
                continue
            silence_s = max(3 * self.interval_s, self.timeout_s / 5) if is_late else self._lost_s
            if now_s - self._talked_s > silence_s:
                self._condemn(
                    f"rank {self.rank}: {self._mute_store(status, now_s)}", "store", self.codes.hang
                )
            silent = {rank for rank, (_, at_s) in self._seen.items() if now_s - at_s > silence_s}
            heard = {rank: seen for rank, (seen, _) in self._seen.items()} | {self.rank: status}
            busy = (seen for rank, seen in heard.items() if rank not in silent and rank != self.rank)
            if any(seen["age_s"] < EARLY * seen["limit_s"] and not seen["is_collective"] for seen in busy):
                continue  # a rank that is awake, and whose phase may last
            if is_late or silent:
                code = self.codes.hang if is_late else self.codes.lost
                self._condemn(judge(heard, silent, self.world_size), self._claim(), code)

    def _mute_store(self, status: dict[str, Any], now_s: float) -> str:
        return (
            f"the process that keeps the store (rank 0, or what started it) has said nothing for "
            f"{now_s - self._talked_s:.0f} s; this rank waits at step {status['step']}, in {status['place']}"
        )

    def _claim(self) -> str:
        """Whether this rank is the first to judge, asked in a thread, for the store may never answer."""
        answer: list[int] = []

        def ask() -> None:
            answer.append(self._store.clone().add("claims", 1))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(max(0.5, self.timeout_s * (1 - EARLY) / 2))
        return "store" if not answer else "first" if answer[0] == 1 else "later"

    def _condemn(self, line: str, claim: str, code: int) -> None:
        """Say the verdict, leave it for the others, and end with `code`."""
        if claim == "first":
            self._store.clone().set("verdict", json.dumps({"code": code, "line": line}))
        if claim != "later":
            sys.stderr.write(f"{'HangError' if code == self.codes.hang else 'LostRankError'}: {line}\n")
        self._end(code, line)

    def _end(self, code: int, line: str = "") -> None:
        with self._ending:
            if self._closed.is_set():
                return
            self.verdict = line
            if self.at_end is not None:  # in a thread: what it writes to may be what hangs
                ending = threading.Thread(target=self.at_end, args=(code, line), daemon=True)
                ending.start()
                ending.join(AT_END_S)
            sys.stderr.flush()
            if self.hosts_store:
                time.sleep(2 * self.interval_s + 0.5)  # for the others to read the verdict
            os._exit(code)


def connect(store: dist.Store) -> dist.Store:
    """A connection of our own to the store of the default process group, apart from earlier ones."""
    name = gather_objects(uuid.uuid4().hex)[0]
    return dist.PrefixStore(f"{PREFIX}-{name}", store).clone()
