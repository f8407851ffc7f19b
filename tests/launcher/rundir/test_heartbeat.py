"""progress.json: where a run and each of its ranks stand, whole at any time, and no danger to the run."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

from launcher.rundir import heartbeat
from launcher.rundir.heartbeat import Heartbeat, interval_s
from launcher.rundir.paths import RunFiles, read_json
from parallel.watchdog import watch as watch_module
from parallel.watchdog.options import WatchdogOptions
from parallel.watchdog.watch import Watchdog


@pytest.fixture
def watches() -> Iterator[list[Watchdog]]:
    """Of two ranks; rank 0 listens to rank 1 all the time."""
    store = dist.HashStore()
    options = WatchdogOptions(timeout_s=60, hang_code=81, lost_code=80, listen_s=0.1)
    with mock.patch("parallel.watchdog.watch.node_name", return_value="n1"):
        found = [Watchdog(store, rank, 2, options) for rank in (0, 1)]
    yield found
    for watch in found:
        watch.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_what_it_says(tmp_path: Path, watches: list[Watchdog], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LONGEST_S", 0.05)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    run = RunFiles(tmp_path)
    beating = Heartbeat(run, watches[0])
    first = read_json(run.progress)
    assert (first["step"], first["loss"], first["eta_s"], first["ended"]) == (0, None, None, None)
    assert first["job"] == {"id": "12", "restarts": 0}
    watches[0].begin(10)
    beating.note(total_steps=110)
    time.sleep(0.2)
    watches[0].begin(20)
    watches[1].begin(19)
    beating.note(loss=2.5, images_s=640.0)
    wait_for(lambda: [rank["step"] for rank in read_json(run.progress)["ranks"]] == [20, 19])
    wait_for(lambda: read_json(run.progress)["loss"] == 2.5)
    now = read_json(run.progress)
    assert (now["step"], now["total_steps"], now["images_s"], now["phase"]) == (20, 110, 640.0, "train")
    assert 1.8 < now["eta_s"] < 600  # 90 steps, at 0.02 s or, on a machine that is busy, more
    second = now["ranks"][1]
    assert (second["rank"], second["node"], second["pid"], second["phase"]) == (1, "n1", os.getpid(), "train")
    assert second["place"]
    assert second["age_s"] < 60
    beating.end(75, "Stopped: x")
    time.sleep(0.1)
    assert read_json(run.progress)["ended"] == {"code": 75, "reason": "Stopped: x"}
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_the_last_word_has_the_last_status_of_every_rank(tmp_path: Path) -> None:
    """Rank 0 listens once an hour: only the exchange at the end can tell it where rank 1 ended."""
    store, run = dist.HashStore(), RunFiles(tmp_path)
    options = WatchdogOptions(timeout_s=60, hang_code=81, lost_code=80, listen_s=3600)
    ranks = [Watchdog(store, rank, 3, options) for rank in (0, 1, 2)]
    beating = Heartbeat(run, ranks[0])
    wait_for(lambda: len(ranks[0].rank_statuses()) == 3)
    for watch in ranks:
        watch.begin(557)
        watch.close()
    assert [rank["step"] for rank in ranks[0].rank_statuses()] == [557, 0, 0]
    for watch in reversed(ranks):
        watch.exchange_last()
    beating.end(0, "finished")
    ended = read_json(run.progress)["ranks"]
    assert [(rank["rank"], rank["step"], rank["phase"]) for rank in ended] == [
        (rank, 557, "train") for rank in (0, 1, 2)
    ]


def test_a_rank_that_does_not_come_at_the_end_keeps_nobody(
    watches: list[Watchdog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "LAST_S", 0.5)
    watches[1].begin(19)
    wait_for(lambda: [rank["step"] for rank in watches[0].rank_statuses()] == [0, 19])
    watches[0].close()
    began_s = time.monotonic()
    watches[0].exchange_last()
    assert time.monotonic() - began_s < 5
    assert [rank["step"] for rank in watches[0].rank_statuses()] == [0, 19]


def test_all_ranks_of_a_run_end_at_its_last_step(reference: Path) -> None:
    progress = read_json(RunFiles(reference).progress)
    assert progress["ended"] == {"code": 0, "reason": "finished"}
    assert [rank["step"] for rank in progress["ranks"]] == 2 * [progress["total_steps"]]


def test_a_write_that_fails_costs_nothing(tmp_path: Path, watches: list[Watchdog]) -> None:
    run = RunFiles(tmp_path)
    with mock.patch.object(os, "write", side_effect=OSError(28, "No space left on device")):
        beating = Heartbeat(run, watches[0])
    assert list(tmp_path.iterdir()) == []
    beating.end(0, "finished")
    assert read_json(run.progress)["ended"]["code"] == 0


@pytest.mark.parametrize(("timeout_s", "every_s"), [(6, 2), (600, 5)])
def test_three_times_before_a_hang_is_one(timeout_s: float, every_s: float) -> None:
    assert interval_s(timeout_s) == every_s


def test_a_thousand_ranks_are_cheap(tmp_path: Path) -> None:
    """In one request of the store; the bound is ten times what it takes here."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    options = WatchdogOptions(timeout_s=600, hang_code=81, lost_code=80, listen_s=5)
    watch = Watchdog(store, 0, 1, options)
    watch.world_size = 1000
    for rank in range(1, 1000):
        store.set(f"who/{rank}", json.dumps({"node": f"n{rank // 8}", "pid": rank}))
        store.set(f"beat/{rank}", json.dumps(watch.status() | {"posts": 1}))
    start_s = time.monotonic()
    watch.listen()
    assert time.monotonic() - start_s < 0.5
    assert len(watch.rank_statuses()) == 1000
