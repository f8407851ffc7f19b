"""Saving beside training: what is written, when training waits, and what becomes of a save that fails."""

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

from parallel.checkpoint import write
from parallel.checkpoint.async_saver import CheckpointSaver, SaveResult
from parallel.checkpoint.manifest import CheckpointError, read_manifest
from parallel.ranks.collectives import gather_objects
from tests.distributed import RankError, run_on_ranks
from tests.messages import assert_names
from tests.parallel.checkpoint.saving import PlainMasterWeights, mesh_of, names, resumed_step, save

BOTH = pytest.mark.parametrize("asynchronous", [False, True])


@dataclass(frozen=True)
class Gate:
    """A point that a thread has come to, and that it leaves when it may."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def gate() -> Iterator[Gate]:
    """A gate before the files are written."""
    original, here = write.write_rank_files, Gate()

    def waiting(*arguments: Any) -> Any:
        here.reached.set()
        assert here.opened.wait(60)
        return original(*arguments)

    with mock.patch.object(write, "write_rank_files", waiting):
        yield here


def test_training_goes_on_while_a_thread_writes_what_was_there_at_the_start(tmp_path: Path) -> None:
    saver, masters = CheckpointSaver(tmp_path, mesh_of()), PlainMasterWeights(3)
    record = {"state": {"images": [48]}}
    with gate() as before_writing:
        saver.start(3, masters, record)
        masters.at(4)  # the very memory that was saved
        record["state"]["images"].append(64)
        assert saver.poll() == []
        assert before_writing.reached.wait(60)
        assert names(tmp_path) == ["step-00000003.tmp"]
        before_writing.opened.set()
        (outcome,) = saver.finish()
    assert (outcome.step, outcome.error, outcome.warning) == (3, None, None)
    assert resumed_step(tmp_path) == (3, [])
    assert read_manifest(tmp_path / "step-00000003")["state"] == {"images": [48]}
    assert saver.poll() == saver.finish() == []


def test_the_stall_is_the_copy_and_the_save_is_all_of_it(tmp_path: Path) -> None:
    saver = CheckpointSaver(tmp_path, mesh_of())
    with gate() as before_writing:
        saver.start(1, PlainMasterWeights(1), {})
        time.sleep(0.3)
        before_writing.opened.set()
        while not (told := saver.poll()):
            time.sleep(0.01)
    assert told[0].stall_s < told[0].save_s - 0.25
    assert told[0].bytes == sum(
        path.stat().st_size for path in (tmp_path / "step-00000001").iterdir() if path.suffix != ".json"
    )


def test_synchronous_saving_is_done_when_start_returns(tmp_path: Path) -> None:
    saver = CheckpointSaver(tmp_path, mesh_of(), asynchronous=False)
    saver.start(3, PlainMasterWeights(3), {})
    assert not saver.writing
    assert names(tmp_path) == ["latest", "step-00000003"]
    (outcome,) = saver.poll()
    assert 0 < outcome.save_s <= outcome.stall_s


def test_at_most_one_save_is_under_way(tmp_path: Path) -> None:
    saver, masters = CheckpointSaver(tmp_path, mesh_of()), PlainMasterWeights()
    for step in (1, 2, 3):
        masters.at(step)
        with gate() as before_writing:
            saver.start(step, masters, {})
            assert before_writing.reached.wait(60)
            # the one before is committed, and this one's directory survived the other's end
            assert (tmp_path / "latest").exists() == (step > 1)
            assert names(tmp_path)[-1] == f"step-{step:08d}.tmp"
            assert sum(thread.name.startswith("save-") for thread in threading.enumerate()) == 1
            before_writing.opened.set()
    assert [outcome.step for outcome in saver.finish()] == [1, 2, 3]
    assert resumed_step(tmp_path) == (3, [])
    assert names(tmp_path) == ["latest", "step-00000002", "step-00000003"]


@BOTH
def test_multiples_stay(tmp_path: Path, asynchronous: bool) -> None:
    saver = CheckpointSaver(tmp_path, mesh_of(), asynchronous=asynchronous, keep_last=1, keep_every=4)
    for step in range(2, 12, 2):
        saver.start(step, PlainMasterWeights(step), {})
    saver.finish()
    assert names(tmp_path) == ["latest", *(f"step-{step:08d}" for step in (4, 8, 10))]


# --- saves that fail


@BOTH
def test_too_little_room_is_found_before_anything_is_written(tmp_path: Path, asynchronous: bool) -> None:
    saver = CheckpointSaver(tmp_path, mesh_of(), asynchronous=asynchronous)
    saver.start(1, PlainMasterWeights(1), {})
    (first,) = saver.finish()
    full = SimpleNamespace(f_bavail=3, f_frsize=512, f_blocks=100)
    with (
        mock.patch.object(os, "statvfs", return_value=full),
        mock.patch.object(write, "write_rank_files") as never,
    ):
        saver.start(2, PlainMasterWeights(2), {})
        (second,) = saver.finish()
    assert first.error is None
    # 4 tensors of 8 * 8 + 8 + 4 * 8 + 4 = 108 numbers, 3 kinds of 4 bytes; 2048 bytes beside each; "{}"
    assert second.error is not None
    parts = (f"{tmp_path}/step-00000002.tmp: ", f"{108 * 12 + 12 * 2048 + 17} bytes", "1536 are free")
    assert_names(second.error, *parts)
    never.assert_not_called()
    assert names(tmp_path) == ["latest", "step-00000001"]
    saver.start(3, PlainMasterWeights(3), {})
    assert saver.finish()[0].error is None
    assert resumed_step(tmp_path)[0] == 3


def test_old_ones_that_cannot_be_deleted_are_a_warning(tmp_path: Path) -> None:
    saver = CheckpointSaver(tmp_path, mesh_of(), keep_last=1)
    for step in (1, 2):
        with (
            mock.patch("shutil.rmtree", side_effect=OSError("busy"))
            if step == 2
            else contextlib.nullcontext()
        ):
            saver.start(step, PlainMasterWeights(step), {})
            (outcome,) = saver.finish()
    assert outcome.error is None
    assert outcome.warning is not None
    assert outcome.warning.endswith(": busy")
    assert resumed_step(tmp_path)[0] == 2


def test_a_bug_in_the_thread_comes_out(tmp_path: Path) -> None:
    saver = CheckpointSaver(tmp_path, mesh_of())
    with mock.patch.object(write, "write_rank_files", side_effect=ZeroDivisionError("a bug")):
        saver.start(1, PlainMasterWeights(1), {})
        with pytest.raises(ZeroDivisionError, match="a bug"):
            saver.finish()
    saver.start(2, PlainMasterWeights(2), {})
    assert saver.finish()[0].error is None


def save_with_a_full_disk(directory: Path) -> tuple[list[SaveResult], list[str]]:
    """The first of three saves is good, the second finds no room for rank 1's file, the third is good."""
    rank = dist.get_rank()
    saver, masters = CheckpointSaver(directory, mesh_of(2, rank)), PlainMasterWeights(width=128)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    left: list[str] = []
    outcomes = []
    for step in (1, 2, 3):
        if rank == 1 and step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        masters.at(step)
        saver.start(step, masters, {})
        for _ in range(20):  # training's own collectives meanwhile
            assert gather_objects((step, rank)) == [(step, 0), (step, 1)]
        outcomes += saver.finish()
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        left += names(directory) if step == 2 else []
        dist.barrier()
    return outcomes, left


def test_a_full_disk_on_one_rank_fails_the_save_on_all_and_nothing_else(tmp_path: Path) -> None:
    told = run_on_ranks(save_with_a_full_disk, 2, tmp_path)
    for outcomes, left in told:
        assert [outcome.error and "File too large" in outcome.error for outcome in outcomes] == [
            None,
            True,
            None,
        ]
        assert outcomes[1].error == told[0][0][1].error
        assert str(outcomes[1].error).startswith(f"could not write {tmp_path}/step-00000002.tmp: rank 1: ")
        assert left == ["latest", "step-00000001"]
    assert resumed_step(tmp_path, width=128) == (3, [])
    assert sorted(read_manifest(tmp_path / "step-00000003")["files"]) == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
    ]


def die_while_saving(directory: Path) -> None:
    rank = dist.get_rank()
    saver = CheckpointSaver(directory, mesh_of(2, rank))
    with gate() if rank == 1 else contextlib.nullcontext():  # rank 0 waits for it in the thread
        saver.start(1, PlainMasterWeights(1), {})
        if rank == 1:
            os.kill(os.getpid(), 9)
        with pytest.raises(RuntimeError):
            saver.finish()
    time.sleep(60)  # so that rank 1's death is what is told


def test_a_rank_that_dies_while_saving_hangs_nobody(tmp_path: Path) -> None:
    with pytest.raises(RankError, match="rank 1 of 2 died with exit code -9"):
        run_on_ranks(die_while_saving, 2, tmp_path)


def test_a_stale_partial_is_swept_by_the_next_save(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000002.tmp").mkdir()
    (tmp_path / "step-00000002.tmp" / "half").write_text("half")
    save(tmp_path, 2)
    assert names(tmp_path) == ["latest", "step-00000001", "step-00000002"]
    with pytest.raises(CheckpointError):  # a partial one is none
        read_manifest(tmp_path / "step-00000003.tmp")
