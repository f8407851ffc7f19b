"""Whom all wait for, and where a thread is."""

import json
import re
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parallel.ranks.collectives import AsyncAllToAll, sum_over
from parallel.ranks.host import read
from parallel.watchdog.diagnosis import DIAGNOSIS, diagnose
from parallel.watchdog.options import WatchdogOptions
from parallel.watchdog.stack import CodeLocation, StackSampler, location_of, stack_of
from parallel.watchdog.watch import Watchdog


class FixedSampler(StackSampler):
    """Answers with what a function returns."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        super().__init__()
        self.answer = answer

    def sample(self) -> Any:
        return self.answer()


def status(
    step: int, place: str = "all_reduce (a.py:1)", *, posted_s: float = 100, **more: Any
) -> dict[str, Any]:
    return {"step": step, "place": place, "is_collective": True, "time_s": posted_s, "still_s": 9.0} | more


def test_the_silent_rank() -> None:
    heard = {
        0: status(17),
        1: status(17),
        2: status(17, "all_to_all_single (b.py:5)", posted_s=69),
        3: status(17),
    }
    assert diagnose(heard, {2}, 4) == (
        "rank 2 has sent no heartbeat for 31 s; last heartbeat at step 17, in all_to_all_single (b.py:5); "
        "ranks 0, 1, 3 wait for it in all_reduce (a.py:1) at step 17"
    )


@pytest.mark.parametrize(
    ("heard", "line"),
    [
        (
            {0: status(4), 1: status(4, "load (c.py:2)", is_collective=False), 2: status(4)},
            "rank 1 is at step 4, for 9 s in load (c.py:2); ranks 0, 2 wait for it in all_reduce (a.py:1) at "
            "step 4",
        ),
        (
            {0: status(4), 1: status(3)},
            "rank 1 is at step 3, for 9 s in all_reduce (a.py:1); rank 0 waits for it in all_reduce (a.py:1) "
            "at step 4",
        ),
        (
            {0: status(4), 1: status(4, "broadcast (d.py:3)")},
            "the ranks wait for each other: rank 0 waits in all_reduce (a.py:1) at step 4, rank 1 waits in "
            "broadcast (d.py:3) at step 4",
        ),
        (
            {1: status(0)},
            "rank 0 has sent no heartbeat; rank 1 waits for it in all_reduce (a.py:1) at step 0",
        ),
    ],
)
def test_the_rank_in_the_way(heard: dict[int, dict[str, Any]], line: str) -> None:
    assert diagnose(heard, set(), len(heard) if 0 in heard else 2) == line


def place_in(target: Any) -> Any:
    """Where a thread is that runs `target`, after a moment."""
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    time.sleep(0.3)
    return location_of(stack_of(thread.ident or 0))


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Lock()
    held.acquire()
    names: dict[str, Any] = {"__name__": "torch.distributed.distributed_c10d", "wait": held.acquire}
    exec("def all_reduce(*a, **k):\n    wait()", names)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(dist, "all_reduce", names["all_reduce"])
    found = place_in(lambda: sum_over(torch.zeros(1)))
    assert found.is_collective
    assert found.text.startswith("all_reduce (parallel/ranks/collectives.py:")

    exchange = AsyncAllToAll([1], [1], None)  # type: ignore[arg-type]
    work = SimpleNamespace(wait=held.acquire)
    monkeypatch.setattr(dist, "all_to_all_single", lambda *_, **options: work)
    exchange.send(torch.zeros(1), reverse=False)
    found = place_in(exchange.receive)
    assert found.is_collective
    assert found.text.startswith("all_to_all_single (parallel/ranks/collectives.py:")

    assert not place_in(lambda: held.acquire()).is_collective


def test_a_read_of_the_device_is_a_wait_for_others() -> None:
    held = threading.Lock()
    held.acquire()
    found = place_in(lambda: read(SimpleNamespace(cpu=held.acquire)))  # type: ignore[arg-type]
    assert found.is_collective
    assert found.text.startswith("read (tests/parallel/watchdog/test_watch.py:")


DEVICE_WAITS = (
    *(
        "torch.cuda",
        "torch.cuda.streams",
        "torch.nn.functional",
        "torch._tensor",
        "swin_moe.backbone.attention",
    ),
    *("deepspeed.runtime.zero.stage_1_and_2", "deepspeed.runtime.bf16_optimizer", "torch.optim.adamw"),
)
OWN_WORK = (
    *(
        "data_shards.stream.workers",
        "launcher.training.trainer",
        "torch.serialization",
        "torch._inductor.compile_fx",
    ),
    *("torch.distributed_of_another", "threading", "swin_moe_of_another"),
)


def frame_in(module: str, name: str = "f", line: int = 7) -> Any:
    code = SimpleNamespace(co_filename="none.py", co_firstlineno=1, co_name=name)
    return SimpleNamespace(f_lineno=line, f_code=code, f_globals={"__name__": module})


@pytest.mark.parametrize("module", DEVICE_WAITS + OWN_WORK)
def test_with_nccl_to_stand_in_torchs_code_is_to_wait_for_others(module: str) -> None:
    stack = [frame_in(module), frame_in("launcher.training.trainer", "train_step", 246)]
    assert location_of(stack, waits_for_device=True).is_collective == (module in DEVICE_WAITS)
    assert not location_of(stack).is_collective


@pytest.mark.parametrize("late", [0, 2, 3])
def test_with_nccl_the_rank_that_waits_for_its_data_is_named(late: int) -> None:
    """All others stand in reads of the device, for which a collective is the reason."""
    waits = [
        [frame_in("parallel.ranks.host", "read"), frame_in("parallel.experts.exchange", "_cells", 135)],
        [frame_in("torch.cuda", "synchronize"), frame_in("parallel.zero.engine", "step", 129)],
        [frame_in("deepspeed.runtime.bf16_optimizer", "step"), frame_in("parallel.zero.engine", "step", 129)],
    ]
    stacks = {rank: waits[rank % 3] for rank in range(4)}
    stacks[late] = [frame_in("threading", "wait"), frame_in("data_shards.stream.workers", "_finished", 186)]
    places = {rank: location_of(stack, waits_for_device=True) for rank, stack in stacks.items()}
    heard = {rank: status(7, place.text, is_collective=place.is_collective) for rank, place in places.items()}
    culprit = f"rank {late} is at step 7, for 9 s in _finished (data_shards/stream/workers.py:186); "
    assert diagnose(heard, set(), 4).startswith(culprit)


@pytest.mark.parametrize("nccl", [True, False])
def test_with_nccl_a_rank_that_falls_silent_is_lost_before_the_time_out(nccl: bool) -> None:
    """Gloo raises at once where a peer is dead; NCCL neither returns nor raises."""
    ends: list[tuple[int, str]] = []
    options = WatchdogOptions(
        timeout_s=4,
        hang_code=81,
        lost_code=80,
        listen_s=0.05,
        nccl=nccl,
        lost_s=0.6,
        end_process=lambda code: None,
    )
    location = CodeLocation(text="read (parallel/experts/exchange.py:135)", is_collective=True)
    sampler = FixedSampler(lambda: (location, 100.0))
    store = dist.HashStore()
    store.set("who/1", json.dumps({"host": "host-1", "pid": 1, "start": "1"}))
    store.set("beat/1", json.dumps(status(7, age_s=1.0, limit_s=60.0, posts=1)))
    watch = Watchdog(store, 0, 2, options, sampler=sampler, at_end=lambda *end: ends.append(end))
    deadline_s = time.monotonic() + (8 if nccl else 1.5)
    while not ends and time.monotonic() < deadline_s:
        time.sleep(0.05)
    watch.close()
    if not nccl:
        assert ends == []
        return
    code, line = ends[0]
    assert code == options.lost_code
    assert re.match(
        r"rank 1 has sent no heartbeat for .* s; last heartbeat at step 7, in all_reduce \(a.py:1\); ", line
    )
    assert json.loads(store.get(DIAGNOSIS)) == {"code": code, "line": line}


def test_a_frame_between_two_lines_has_a_location() -> None:
    """In CPython 3.11 its f_lineno is None."""
    code = SimpleNamespace(co_filename=__file__, co_firstlineno=5, co_name="f")
    frame: Any = SimpleNamespace(f_lineno=None, f_code=code, f_globals={"__name__": "parallel.x"})
    assert location_of([frame]).text == "f (parallel/x.py:5)"


def test_a_stack_is_that_of_the_thread_whole_and_in_order() -> None:
    ready, done, seen = threading.Event(), threading.Event(), list[int]()

    def inner(depth: int) -> None:
        if depth:
            return inner(depth - 1)
        seen.append(threading.get_ident())
        ready.set()
        done.wait()
        return None

    thread = threading.Thread(target=inner, args=(20,))
    thread.start()
    ready.wait()
    names = [frame.f_code.co_name for frame in stack_of(seen[0])]
    done.set()
    thread.join()
    start = names.index("inner")
    assert names[start : start + 21] == ["inner"] * 21
    assert names[start + 21 :] == ["run", "_bootstrap_inner", "_bootstrap"]
    assert stack_of(seen[0]) == []


def test_what_cannot_be_read_does_not_end_the_watch() -> None:
    options = WatchdogOptions(timeout_s=5, hang_code=81, lost_code=80)
    watch = Watchdog(dist.HashStore(), 0, 1, options, sampler=FixedSampler(lambda: 1 / 0))
    assert watch.status()["place"] == "a place that cannot be read (division by zero)"


def test_for_how_long_the_main_thread_stands_still() -> None:
    here, answers = StackSampler(), []

    def look() -> None:
        for _ in range(3):
            answers.append(here.sample()[1])
            time.sleep(0.2)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert answers[0] == 0
    assert answers[2] > 0.15
    here.sample()
    time.sleep(0.01)
    assert here.sample()[1] < 0.35


def test_a_rank_of_another_machine_that_posts_nothing_more_is_the_lost_one() -> None:
    """Rank 1 looks for it too, rank 2 still waits in a collective, rank 3 is gone."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    watch = Watchdog(store, 0, 1, WatchdogOptions(timeout_s=60, hang_code=81, lost_code=80))
    watch.world_size = 4
    for rank in range(4):
        store.set(f"who/{rank}", json.dumps({"host": f"host-{rank}", "pid": 1, "start": "1"}))
        store.set(f"beat/{rank}", json.dumps(status(7) | {"posts": 1}))
    store.set("here/1", "")
    posting = threading.Timer(0.1, lambda: store.set("beat/2", json.dumps(status(7) | {"posts": 2})))
    posting.start()
    line = "lost rank 3: no heartbeat for 1 s; last heartbeat at step 7, in all_reduce (a.py:1)"
    assert watch.find_lost_rank(1.0) == (80, line)
    assert json.loads(store.get(DIAGNOSIS)) == {"code": 80, "line": line}
    assert watch.find_lost_rank(1.0) == (80, "")
    posting.join()


def test_a_closed_watch_leaves_no_thread_in_the_store() -> None:
    """A thread inside of the store would abort the process when Python ends."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    options = WatchdogOptions(timeout_s=1.0, hang_code=81, lost_code=83, hosts_store=False, listen_s=0.1)
    for _ in range(20):
        watch = Watchdog(store.clone(), 0, 2, options)
        assert {thread.name for thread in watch._threads} == {"watchdog-post", "watchdog-watch"}
        time.sleep(0.02)
        watch.close()
        assert not any(thread.is_alive() for thread in watch._threads)
