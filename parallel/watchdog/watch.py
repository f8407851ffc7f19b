"""The watchdog: no rank waits for ever. A rank that stands still or is gone is named, and all ranks end.

Each rank posts its step and the location of its main thread (stack.py) to the store of the process group,
every few tenths of a second. A rank whose main thread has not moved for the time-out reads what the others
posted, names the rank that all wait for (diagnosis.py), and ends; the others read the diagnosis and end too.
Two threads do it: only one of them uses the store, so that a store whose host stands still cannot silence
both.
"""

import json
import math
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Literal

import torch.distributed as dist

from parallel.ranks.collectives import gather_objects
from parallel.ranks.identity import identity, node_name
from parallel.watchdog.diagnosis import (
    DIAGNOSIS,
    STORE_ERRORS,
    LostRankSearch,
    diagnose,
    read_statuses,
)
from parallel.watchdog.options import WatchdogOptions
from parallel.watchdog.stack import CodeLocation, StackSampler
from parallel.watchdog.words import LOST_STORE

EARLY = 0.9  # of the time-out: before that of the process groups
SLOW = 3.0  # times the time-out: what phases may take that are known to be slow
AT_END_S = 5.0
CLOSE_S = 2.0  # for the threads to end
LAST_S = 3.0  # for the last statuses of all ranks
RANK_0_S = 10.0  # for rank 0 to write everything down
PREFIX = "watch"  # of its keys, where the store is shared
NCCL = "nccl"  # the key that is there where collectives run on GPUs


class Watchdog:
    """One rank's watchdog; `beat` tells it that the main thread makes progress.

    Args:
        store: a connection that no one else uses.
        rank: of this process.
        world_size: ranks.
        options: the rest.
        sampler: of the main thread's stack; None for one of its own.
        at_end: called with the exit status and the diagnosis before the process ends, for `AT_END_S` at most.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        options: WatchdogOptions,
        *,
        sampler: StackSampler | None = None,
        at_end: Callable[[int, str], None] | None = None,
    ) -> None:
        self.rank, self.world_size, self.options, self.at_end = rank, world_size, options, at_end
        self.diagnosis = ""  # why all ranks end, by this rank or another
        self.interval_s = min(2.0, max(0.1, options.timeout_s / 20))
        self.step, self.phase_name = 0, "start"
        self._store, self._clock = store, options.clock
        self._limit_s, self._since_s = SLOW * options.timeout_s, self._clock()
        self._sampler, self._posts = sampler or StackSampler(waits_for_device=options.nccl), 0
        self._lost_s = options.lost_s if options.nccl else math.inf
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}  # status, when it last changed
        self._who: dict[int, dict[str, Any]] = {}
        self._listened_s = -math.inf
        self._posted_s = self._clock()
        self._closed, self._ending = threading.Event(), threading.Lock()
        store.set(f"who/{rank}", json.dumps(identity() | {"node": node_name()}))
        if options.nccl:
            store.set(NCCL, "")
        loops = {"post": self._post_loop, "watch": self._watch_loop} if world_size > 1 else {}
        self._threads = [
            threading.Thread(target=loop, name=f"watchdog-{name}", daemon=True)
            for name, loop in loops.items()
        ]
        for thread in self._threads:
            thread.start()

    @property
    def timeout_s(self) -> float:
        """How long a main thread may stand still."""
        return self.options.timeout_s

    # --- from the main thread

    def beat(self, step: int | None = None) -> None:
        """The main thread makes progress."""
        self.step = self.step if step is None else step
        self._since_s = self._clock()

    @contextmanager
    def phase(self, name: str, limit_s: float | None = None) -> Iterator[None]:
        """Name a phase that may take longer than the time-out, by default `SLOW` times as long."""
        before = self.phase_name, self._limit_s
        self.phase_name, self._limit_s = name, SLOW * self.timeout_s if limit_s is None else limit_s
        self.beat()
        try:
            yield
        finally:
            self.phase_name, self._limit_s = before
            self.beat()

    def begin(self, step: int) -> None:
        """End the start: from here on the time-out holds outside of phases."""
        self.phase_name, self._limit_s = "train", self.timeout_s
        self.beat(step)

    def post_reason(self, line: str) -> None:
        """Post why this rank ends, so that the others need not search."""
        try:
            self._store.clone().set(f"words/{self.rank}", line)
        except STORE_ERRORS:
            sys.stderr.flush()  # the store ended first: no rank is left to read it

    def close(self) -> None:
        """End the watchdog and its threads; this process goes on.

        A thread that is inside of the store when Python ends would abort the process: it comes back from C++
        to an interpreter that is gone. A store that does not answer is given up after `CLOSE_S`.
        """
        self._closed.set()
        deadline_s = time.monotonic() + CLOSE_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline_s - time.monotonic()))

    def exchange_last(self) -> None:
        """Post the last status of this rank; rank 0 reads those of all ranks, for `LAST_S` at the longest.

        Ranks that all end call it after `close`, so that `rank_statuses` says where each of them ended.
        """
        if self.world_size > 1:
            exchanging = threading.Thread(target=self._exchange_last, daemon=True)  # a store may never answer
            exchanging.start()
            exchanging.join(LAST_S)

    def _exchange_last(self) -> None:
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        try:
            store = self._store.clone()
            store.set(f"last/{self.rank}", json.dumps(self.status()))
            if self.rank != 0:
                return
            with suppress(*STORE_ERRORS):  # a rank that does not come keeps its earlier status
                store.wait([f"last/{rank}" for rank in others], timedelta(seconds=LAST_S * EARLY))
            statuses, now_s = read_statuses(store, "last", others), self._clock()
        except STORE_ERRORS:
            return
        self._seen = self._seen | {rank: (status, now_s) for rank, status in statuses.items()}

    def wait_for_rank_0(self) -> None:
        """Return when rank 0 has called it too, after `RANK_0_S` at the latest.

        The launcher may kill the other ranks as soon as one has ended, and rank 0 writes for all.
        """
        if self.world_size > 1:
            waiting = threading.Thread(target=self._meet_rank_0, daemon=True)  # a store may never answer
            waiting.start()
            waiting.join(RANK_0_S)

    def _meet_rank_0(self) -> None:
        try:
            store = self._store.clone()
            if self.rank == 0:
                store.set("written", "")
            else:
                store.wait(["written"], timedelta(seconds=RANK_0_S))
        except STORE_ERRORS:
            return  # rank 0 held the store and has ended: it has written

    def rank_statuses(self) -> list[dict[str, Any]]:
        """Each rank's node, process, step, phase and place, and the seconds since its status last changed."""
        now_s = self._clock()
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

    def find_lost_rank(self, patience_s: float = 5.0) -> tuple[int, str]:
        """After a broken connection: the exit status, and which rank is lost ("" if reported already)."""
        self._closed.set()
        lost_code = self.options.lost_code
        try:
            store = self._store.clone()
        except STORE_ERRORS:
            return lost_code, LOST_STORE
        search = LostRankSearch(store, self.rank, self.world_size, lost_code)
        code, self.diagnosis, is_reported = search.find(patience_s)
        unknown = f"rank {self.rank} lost its connection to another rank at step {self.step}"
        line = self.diagnosis or unknown
        return lost_code if code is None else code, "" if is_reported else line

    # --- the thread that uses the store

    def _post_loop(self) -> None:
        while not self._closed.wait(self.interval_s):
            try:
                self._posts += 1
                self._store.set(f"beat/{self.rank}", json.dumps(self.status()))
                if self._store.check([DIAGNOSIS]):
                    diagnosis = json.loads(self._store.get(DIAGNOSIS))
                    self._end(diagnosis["code"], diagnosis["line"])
                if self._is_to_listen():
                    self.listen()
                self._posted_s = self._clock()
            except STORE_ERRORS:  # its host is gone: the main thread will notice, or `_watch_loop`
                return

    def status(self) -> dict[str, Any]:
        """The status that this rank posts."""
        location, still_s = self._sample()
        age_s = self._clock() - self._since_s
        return {
            "posts": self._posts,
            "step": self.step,
            "phase": self.phase_name,
            "limit_s": self._limit_s,
            "age_s": age_s,
            "still_s": min(still_s, age_s),
            "place": location.text,
            "is_collective": location.is_collective,
            "time_s": time.time(),
        }

    def _sample(self) -> tuple[CodeLocation, float]:
        """Where the main thread is; a frame that cannot be read must not end the watchdog."""
        try:
            return self._sampler.sample()
        except Exception as error:  # any: a thread that dies of it would leave a hang undetected
            age_s = self._clock() - self._since_s
            return CodeLocation(text=f"a place that cannot be read ({error})", is_collective=False), age_s

    def _is_to_listen(self) -> bool:
        now_s, listen_s = self._clock(), self.options.listen_s
        is_new = len(self._seen) < self.world_size - 1
        is_due = listen_s is not None and (is_new or now_s - self._listened_s > listen_s)
        return is_due or now_s - self._since_s > self.timeout_s / 3

    def listen(self) -> None:
        """Read what the others posted."""
        now_s = self._listened_s = self._clock()
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        if self.options.listen_s is not None:
            unknown = [rank for rank in others if rank not in self._who]
            self._who |= read_statuses(self._store, "who", unknown)
        for rank, status in read_statuses(self._store, "beat", others).items():
            before = self._seen.get(rank)
            if before is None or before[0]["posts"] != status["posts"]:
                self._seen[rank] = status, now_s

    # --- the thread that decides

    def _watch_loop(self) -> None:
        while not self._closed.wait(self.interval_s / 2):
            status, now_s = self.status(), self._clock()
            is_late = status["still_s"] >= EARLY * max(self.timeout_s, status["limit_s"])
            if not (is_late or (status["is_collective"] and status["still_s"] > self._lost_s / 2)):
                continue
            silence_s = max(3 * self.interval_s, self.timeout_s / 5) if is_late else self._lost_s
            if now_s - self._posted_s > silence_s:
                line = f"rank {self.rank}: {self._store_silence(status, now_s)}"
                self._report_and_end(line, "store", self.options.hang_code)
            silent = {rank for rank, (_, at_s) in self._seen.items() if now_s - at_s > silence_s}
            statuses = {rank: seen for rank, (seen, _) in self._seen.items()} | {self.rank: status}
            busy = (seen for rank, seen in statuses.items() if rank not in silent and rank != self.rank)
            if any(seen["age_s"] < EARLY * seen["limit_s"] and not seen["is_collective"] for seen in busy):
                continue  # a rank that is at work, and whose phase may last
            if is_late or silent:
                code = self.options.hang_code if is_late else self.options.lost_code
                self._report_and_end(diagnose(statuses, silent, self.world_size), self._claim(), code)

    def _store_silence(self, status: dict[str, Any], now_s: float) -> str:
        return (
            f"the process that holds the store (rank 0, or its parent) has not answered for "
            f"{now_s - self._posted_s:.0f} s; this rank waits at step {status['step']}, in {status['place']}"
        )

    def _claim(self) -> Literal["first", "later", "store"]:
        """Whether this rank is the first with a diagnosis; "store" where the store does not answer."""
        answer: list[int] = []

        def add() -> None:
            answer.append(self._store.clone().add("claims", 1))

        adding = threading.Thread(target=add, daemon=True)
        adding.start()
        adding.join(max(0.5, self.timeout_s * (1 - EARLY) / 2))
        return "store" if not answer else "first" if answer[0] == 1 else "later"

    def _report_and_end(self, line: str, claim: Literal["first", "later", "store"], code: int) -> None:
        """Report the diagnosis, post it for the others, and end with `code`."""
        if claim == "first":
            self._store.clone().set(DIAGNOSIS, json.dumps({"code": code, "line": line}))
        if claim != "later":
            name = "HangError" if code == self.options.hang_code else "LostRankError"
            sys.stderr.write(f"{name}: {line}\n")
        self._end(code, line)

    def _end(self, code: int, line: str = "") -> None:
        with self._ending:
            if self._closed.is_set():
                return
            self.diagnosis = line
            if self.at_end is not None:  # in a thread: what it writes to may be what hangs
                ending = threading.Thread(target=self.at_end, args=(code, line), daemon=True)
                ending.start()
                ending.join(AT_END_S)
            sys.stderr.flush()
            if self.options.hosts_store:
                time.sleep(2 * self.interval_s + 0.5)  # for the others to read the diagnosis
            self._closed.set()
            self.options.end_process(code)


def connect(store: dist.Store) -> dist.Store:
    """A connection to the store of the default process group, with keys apart from those of earlier ones."""
    name = gather_objects(uuid.uuid4().hex)[0]
    return dist.PrefixStore(f"{PREFIX}-{name}", store).clone()
