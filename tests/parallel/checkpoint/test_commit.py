"""Committed steps on the disk: the pointer, pruning, and what killed saves left."""

from pathlib import Path

import pytest

from parallel.checkpoint.commit import commit, committed, latest, open_partial, prune, step_of, steps_to_keep
from parallel.checkpoint.manifest import CheckpointError, describe, read_manifest
from tests.messages import assert_names


def write(directory: Path, step: int) -> Path:
    """A committed checkpoint of one small file."""
    partial = directory / f"step-{step:08d}.tmp"
    open_partial(partial)
    (partial / "file").write_text(str(step))
    commit(partial, partial.with_suffix(""), {"step": step, "files": describe([partial / "file"])})
    return partial.with_suffix("")


def test_the_pointer_follows_the_newest_commit(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for step in (10, 20):
        assert latest_step(tmp_path, write(tmp_path, step)) == step


def latest_step(directory: Path, written: Path) -> int:
    assert latest(directory) == written
    return read_manifest(written)["step"]


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in (10, 20, 30, 100):
        write(tmp_path, step)
    prune(tmp_path, keep_last=9)
    assert [step_of(path) for path in committed(tmp_path)] == [10, 20, 30, 100]
    prune(tmp_path, keep_last=2)
    assert [step_of(path) for path in committed(tmp_path)] == [30, 100]
    assert len(list(tmp_path.iterdir())) == 3  # and the pointer


def test_pruning_without_a_pointer_deletes_nothing(tmp_path: Path) -> None:
    for step in (10, 20):
        write(tmp_path, step)
    (tmp_path / "latest").unlink()
    prune(tmp_path, keep_last=1)
    assert [step_of(path) for path in committed(tmp_path)] == [10, 20]


@pytest.mark.parametrize(
    ("steps", "current", "keep_last", "keep_every", "staying"),
    [
        ([10, 20, 30, 40], 40, 2, None, {30, 40}),
        ([10, 20, 30, 40], 40, 1, 20, {20, 40}),
        ([10, 20, 30, 40], 40, 2, 30, {30, 40}),  # a multiple may be one of the last
        ([5, 10, 15, 20, 25], 25, 1, 10, {10, 20, 25}),
        ([10, 15, 20, 30], 15, 2, None, {10, 15}),  # went back to 10 and came to 15
        ([10, 15, 20, 30], 15, 3, None, {10, 15, 30}),  # of the branch that was left the latest
        ([10, 15, 20, 30], 15, 1, 30, {15, 30}),
        ([40], 40, 9, 7, {40}),
    ],
)
def test_what_stays(
    steps: list[int], current: int, keep_last: int, keep_every: int | None, staying: set[int]
) -> None:
    assert steps_to_keep(steps, current, keep_last, keep_every) == staying


def test_what_killed_saves_left_is_swept_and_never_written_into(tmp_path: Path) -> None:
    for name in ("step-00000007.tmp", "step-00000005.replaced.tmp"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "old").write_text("half")
    kept = write(tmp_path, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000007"]
    assert sorted(path.name for path in kept.iterdir()) == ["file", "manifest.json"]


def test_a_step_that_is_reached_again_replaces_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (tmp_path / "step-00000005" / "file").write_text("old")
    again = write(tmp_path, 5)
    assert (again / "file").read_text() == "5"
    write(tmp_path, 6)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000005", "step-00000006"]


def test_a_pointer_to_nothing_names_what_there_is(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (tmp_path / "latest").write_text("step-00000009\n")
    with pytest.raises(CheckpointError) as error:
        latest(tmp_path)
    assert_names(str(error.value), f"{tmp_path / 'latest'} ", "step-00000009", "['step-00000005']")
