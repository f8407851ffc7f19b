"""Who is gone, once a connection has broken: found out in the store by every rank that noticed."""

import json
import time
from typing import Any

import torch.distributed as dist

from parallel.ranks.identity import is_gone
from parallel.watchdog.status import STORE_ERRORS, read_posts

GONE = "its process is gone without a word"
Found = tuple[int | None, str, bool]  # the code, where it is another's verdict; the line; whether it was said


class Search:
    """One rank's search for the lost one.

    Args:
        store: a connection to it, which every rank's `who`, `beat`, `words` and the `verdict` are in.
        rank: of this process.
        world_size: ranks.
        code: of a verdict that a rank is lost.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, code: int) -> None:
        self._store, self._rank, self._code = store, rank, code
        self._all = list(range(world_size))

    def find(self, patience_s: float) -> Found:
        """Look until somebody has said who it is, a process is known to be gone, or patience is at an end."""
        give_up_s = time.monotonic() + patience_s
        try:
            self._store.set(f"here/{self._rank}", "")
            before = read_posts(self._store, "beat", self._all)
            while time.monotonic() < give_up_s:
                if found := self._said() or self._tell(self._gone(), GONE):
                    return found
                time.sleep(0.05)
            told = self._tell(self._silent(before), f"nothing heard of it for {patience_s:.0f} s")
        except STORE_ERRORS:
            return None, "lost rank 0, which kept the store, or its node", False
        return told or (None, "", False)

    def _said(self) -> Found | None:
        """What another rank has said of it already."""
        if self._store.check(["verdict"]):
            verdict = json.loads(self._store.get("verdict"))
            return int(verdict["code"]), verdict["line"], True
        for rank in self._all:
            if self._store.check([f"words/{rank}"]):
                words = self._store.get(f"words/{rank}").decode()
                return None, f"lost rank {rank}, which ended with: {words}", True
        return None

    def _gone(self) -> list[int]:
        """Ranks of this machine whose process is not there any more."""
        who = read_posts(self._store, "who", self._all)
        return [rank for rank, process in who.items() if rank != self._rank and is_gone(process)]

    def _silent(self, before: dict[int, dict[str, Any]]) -> list[int]:
        """Ranks, of other machines, that have posted nothing since and do not search themselves."""
        now = read_posts(self._store, "beat", list(before))
        same = [rank for rank, status in before.items() if status["posts"] == now[rank]["posts"]]
        return [rank for rank in same if not self._store.check([f"here/{rank}"])]

    def _tell(self, lost: list[int], why: str) -> Found | None:
        """Leave the verdict for the others, as the first to find out."""
        if not lost or self._store.add("claims", 1) != 1:
            return None
        last = read_posts(self._store, "beat", lost[:1]).get(lost[0])
        where = f"; it was at step {last['step']}, in {last['place']}" if last else ""
        line = f"lost rank {', '.join(map(str, lost))}: {why}{where}"
        self._store.set("verdict", json.dumps({"code": self._code, "line": line}))
        return None, line, False
