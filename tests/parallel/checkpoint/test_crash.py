"""A kill before every single change that a save makes to the disk, and what the next start finds.

The changes are counted by Python's own audit events and at `os.fsync`, so that none is forgotten: whatever a
save comes to do, the kills go through all of it.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from parallel.checkpoint.async_saver import CheckpointSaver
from parallel.checkpoint.commit import latest
from tests.distributed import RankError, run_on_ranks
from tests.parallel.checkpoint.saving import PlainMasterWeights, mesh_of, names, resumed_step, save

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def before_each_change(directory: Path, act: Callable[[str], None]) -> None:
    """Call `act` with a name before every change below a directory, for the rest of this process's life."""
    fsync = os.fsync

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0]) if arguments else ""
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        inside = path.startswith(str(directory)) or event in (
            "os.remove",
            "os.rmdir",
        )  # rmtree's are relative
        if inside and (event in CHANGES or writes):
            act(f"{event} {Path(path).name.replace(f'.{socket.gethostname()}.{os.getpid()}', '')}")

    def counted(descriptor: int) -> None:
        act("fsync")
        fsync(descriptor)

    sys.addaudithook(listen)
    os.fsync = counted


def forked(action: Callable[[], None]) -> int:
    """The status of a child process that did it."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def third_save(directory: Path, asynchronous: bool, act: Callable[[str], None]) -> None:
    saver = CheckpointSaver(directory, mesh_of(), asynchronous=asynchronous)
    before_each_change(directory, act)
    saver.start(3, PlainMasterWeights(3), {})
    saver.finish()


def killed_at_every_change(root: Path, asynchronous: bool) -> list[tuple[str, int, int]]:
    """For each change: its name, the step the pointer named after a kill before it, the step gone on from."""
    log, found = root / "log", []

    def note(change: str) -> None:
        with log.open("a") as file:
            file.write(f"{change}\n")

    def kill_at(number: int) -> Callable[[str], None]:
        left = [number]

        def act(_: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        return act

    def fresh(name: str) -> Path:
        for step in (1, 2):
            save(root / name, step)
        return root / name

    assert forked(partial(third_save, fresh("counted"), asynchronous, note)) == 0
    for number, change in enumerate(log.read_text().splitlines()):
        directory = fresh(str(number))
        status = forked(partial(third_save, directory, asynchronous, kill_at(number)))
        assert status == signal.SIGKILL
        pointed = latest(directory)
        assert pointed is not None
        step, _ = resumed_step(directory)  # verified, loaded and equal to what was saved
        save(directory, step + 1)
        assert not [name for name in names(directory) if name.endswith(".tmp")]
        assert resumed_step(directory) == (step + 1, [])
        found.append((change, int(pointed.name[5:]), step))
    return found


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_kill_before_any_change_leaves_a_whole_checkpoint(tmp_path: Path, asynchronous: bool) -> None:
    ((*changes,),) = run_on_ranks(killed_at_every_change, 1, tmp_path, asynchronous)
    assert [change for change, *_ in changes] == [
        "os.mkdir step-00000003.tmp",
        "open __0_0.distcp",
        "fsync",
        "open .metadata.tmp",
        "fsync",
        "os.rename .metadata.tmp",
        "open .manifest.json.tmp",
        "fsync",
        "os.rename .manifest.json.tmp",
        "fsync",  # the directory
        "os.rename step-00000003.tmp",
        "fsync",
        "open .latest.tmp",
        "fsync",
        "os.rename .latest.tmp",
        "fsync",
        "os.rename step-00000001",  # pruning begins
        *[f"os.remove {name}" for name in names_of_files(changes)],
        "os.rmdir step-00000001.pruned.tmp",
    ]
    before = [change for change, *_ in changes].index("os.rename .latest.tmp") + 1
    assert [(pointed, step) for _, pointed, step in changes] == [(2, 2)] * before + [(3, 3)] * (
        len(changes) - before
    )


def names_of_files(changes: list[tuple[str, int, int]]) -> list[str]:
    """The files of a checkpoint, in the order in which they were deleted."""
    removed = [change.split()[1] for change, *_ in changes if change.startswith("os.remove")]
    assert sorted(removed) == [".metadata", "__0_0.distcp", "manifest.json"]
    return removed


def save_until_killed(directory: Path, victim: int, change: str) -> None:
    """Two good saves; the third ends where rank `victim` is about to make a change."""
    rank = dist.get_rank()
    saver, masters = CheckpointSaver(directory, mesh_of(2, rank)), PlainMasterWeights()
    for step in (1, 2):
        masters.at(step)
        saver.start(step, masters, {})
    saver.finish()
    if rank == victim:
        before_each_change(
            directory, lambda found: os.kill(os.getpid(), signal.SIGKILL) if found == change else None
        )
    masters.at(3)
    saver.start(3, masters, {})
    saver.finish()


@pytest.mark.parametrize(
    ("victim", "change", "step"),
    [
        (1, "open __1_0.distcp", 2),
        (0, "open .metadata.tmp", 2),
        (0, "os.rename step-00000003.tmp", 2),
        (0, "os.rename step-00000001", 3),
    ],
)
def test_a_kill_of_one_of_two_ranks(tmp_path: Path, victim: int, change: str, step: int) -> None:
    directory = tmp_path / "checkpoints"
    with pytest.raises(RankError):
        run_on_ranks(save_until_killed, 2, directory, victim, change)
    assert resumed_step(directory) == (step, [])
    save(directory, step + 1)
    assert resumed_step(directory) == (step + 1, [])
