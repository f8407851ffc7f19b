"""Saving beside training through the whole command: kills at points of a save, failed saves, damage."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

from launcher.exit_codes import ExitCode
from parallel.checkpoint import commit, write
from parallel.checkpoint.commit import committed, latest
from parallel.checkpoint.manifest import CheckpointError, read_manifest
from parallel.checkpoint.verify import verify_files
from tests.distributed import RankError, run_on_ranks
from tests.launcher.running import command, commands, records
from tests.launcher.training.resumed_runs import assert_same_run, train_line

ASYNCHRONOUS = ("checkpoint.asynchronous=true", "checkpoint.keep_last=2")
FAILED = 14  # the step whose save finds no room


def step_in(arguments: tuple[Any, ...]) -> int:
    """The step that a function of saving is called for, by the name of the directory."""
    return next(int(part.name[5:13]) for part in arguments if isinstance(part, Path) and "step-" in part.name)


def killed_in(place: str, step: int, rank: int, *line: str) -> None:
    """A command that ends where this rank enters a part of the save of a step."""
    owner: Any = write if hasattr(write, place) else commit
    original: Callable[..., Any] = getattr(owner, place)

    def deadly(*arguments: Any) -> Any:
        if step_in(arguments) == step and dist.get_rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    with mock.patch.object(owner, place, deadly):
        command(*line)


@pytest.mark.long
@pytest.mark.parametrize(
    ("place", "rank", "found"),
    [
        ("write_rank_files", 1, 14),  # while rank 0 writes
        pytest.param("commit", 0, 14, marks=pytest.mark.slow),  # everything written, nothing said
        pytest.param(
            "set_latest", 0, 14, marks=pytest.mark.slow
        ),  # renamed; the pointer names the one before
    ],
)
def test_killed_inside_a_save_beside_training(
    shards: Path, tmp_path: Path, uninterrupted: Any, place: str, rank: int, found: int
) -> None:
    run = tmp_path / "run"
    line = train_line(shards, run, *ASYNCHRONOUS)
    with pytest.raises(RankError):
        run_on_ranks(killed_in, 2, place, 21, rank, *line)
    pointed = latest(run / "checkpoints")
    assert pointed is not None
    assert pointed.name == f"step-{found:08d}"
    verify_files(pointed, read_manifest(pointed)["files"])
    assert [outcome.code for outcome in run_on_ranks(command, 2, *line)] == [0, 0]
    assert_same_run(run, uninterrupted(1))
    assert [path.name for path in committed(run / "checkpoints")] == ["step-00000035", "step-00000040"]
    assert not list(run.glob("checkpoints/*.tmp"))


def command_without_room(steps: list[int], *line: str) -> Any:
    """A command during which the disk is full whenever one of these steps is saved."""
    original = write.check_free_space

    def check(partial: Path, needed: int) -> None:
        if int(partial.name[5:13]) in steps:
            raise CheckpointError("no room")
        original(partial, needed)

    with mock.patch.object(write, "check_free_space", check):
        return command(*line)


def test_a_failed_save_is_told_and_counted_and_training_goes_on(
    shards: Path, tmp_path: Path, uninterrupted: Any
) -> None:
    run = tmp_path / "run"
    line = train_line(shards, run, *ASYNCHRONOUS, "checkpoint.keep_last=9")
    first, second = run_on_ranks(command_without_room, 2, [7, FAILED], *line)
    assert [first.code, second.code] == [0, 0]
    partial = run / "checkpoints" / f"step-{FAILED:08d}.tmp"
    said = (
        f"step {FAILED}: NOT SAVED: could not prepare {partial}: rank 0: no room; the checkpoints before it"
    )
    assert f"{said} stand (failed saves: 2)\n" in first.err
    assert first.err.count("NOT SAVED") == 2
    assert second.err == ""
    assert_same_run(run, uninterrupted(1))
    saves = {record["step"]: record for record in records(run) if "save_failed" in record}
    assert sorted(saves) == [7, 14, 21, 28, 35, 40]
    assert [saves[step]["save_failed"] for step in sorted(saves)] == [1, 2, 2, 2, 2, 2]
    assert "no room" in saves[7]["save_error"]
    assert saves[21]["save_error"] is None
    assert 0 < saves[21]["save_copy_s"] <= saves[21]["save_stall_s"] <= saves[21]["save_s"]
    assert [path.name for path in committed(run / "checkpoints")] == [
        f"step-{step:08d}" for step in (21, 28, 35, 40)
    ]


def test_the_last_save_must_not_fail(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = train_line(shards, run, *ASYNCHRONOUS, "train.duration=10 steps")
    first, second = run_on_ranks(command_without_room, 2, [10], *line)
    assert [first.code, second.code] == [ExitCode.SAVE_FAILED] * 2
    assert "FinalSaveError: the state of step 10 is lost: could not prepare" in first.err
    assert latest(run / "checkpoints") == run / "checkpoints" / "step-00000007"


def test_a_damaged_newest_is_passed_over_by_train_and_eval(
    shards: Path, tmp_path: Path, uninterrupted: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted(1), run)
    damaged = run / "checkpoints" / "step-00000040"
    data = damaged / "__1_0.distcp"
    content = bytearray(data.read_bytes())
    content[100] ^= 4
    data.write_bytes(content)
    notice = (
        "[rank 0] step-00000040 is damaged: rank 0: __1_0.distcp is damaged: its sha256 is not the "
        "manifest's; it stays where it is, step-00000035 takes its place\n"
    )
    lines = [["eval", str(run)], ["eval", str(run), "--checkpoint", damaged.name], train_line(shards, run)]
    newest, named, resumed = run_on_ranks(commands, 2, lines)[0]
    assert newest.code == resumed.code == 0
    assert newest.err == notice
    assert newest.out.startswith("step-00000035 (step 35): top-1 ")
    assert named.code == 2
    assert "__1_0.distcp is damaged: its sha256 is not the manifest's" in named.err
    assert resumed.err.startswith(notice)
    assert_same_run(run, uninterrupted(1))
    verify_files(damaged, read_manifest(damaged)["files"])  # reached again and replaced
