"""A run directory that is in use, holds another run or a damaged one: refused, and left as it was."""

import json
import multiprocessing
import os
import shutil
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from launcher.rundir.directory import RunDirectory
from tests.distributed import run_on_ranks
from tests.launcher.refusals import refused
from tests.launcher.running import CONFIG, Outcome, command, commands, overrides
from tests.messages import assert_names


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a run; the lock's text is only of use while it is held."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on one rank; only read."""
    run = tmp_path_factory.mktemp("finished") / "run"
    (outcome,) = run_on_ranks(
        command, 1, "train", str(CONFIG), *overrides(shards, run, "train.duration=2 steps")
    )
    assert outcome.code == 0
    return run


def test_a_run_is_not_trained_over(capsys: pytest.CaptureFixture[str], shards: Path, finished: Path) -> None:
    before = contents(finished)
    line = ["train", str(CONFIG), *overrides(shards, finished, "train.duration=2 steps")]
    message = refused(capsys, *line, "--nproc", "2")
    assert message.startswith(f"ConfigError: run_dir ({finished}) ")
    assert "--resume auto" in message
    outcomes = run_on_ranks(command, 2, *line)
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert [outcome.err for outcome in outcomes] == [message.replace(": ", ": rank 0: ", 1), ""]
    assert contents(finished) == before


def hold(directory: str, pipe: Connection) -> None:
    """Lock a run directory and never let go."""
    run = RunDirectory(directory)
    run.lock(resume=False)
    pipe.send(None)
    signal.pause()


def test_a_run_directory_in_use_and_after_its_holder_was_killed(
    capsys: pytest.CaptureFixture[str], shards: Path
) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    holder = context.Process(target=hold, args=("run", theirs), daemon=True)
    holder.start()
    ours.recv()
    message = refused(capsys, "train", str(CONFIG), "--nproc", "2", *overrides(shards, "run"))
    assert message.count("\n") == 1
    assert message.startswith("ConfigError: run_dir (run) ")
    assert f"is in use by process {holder.pid} on " in message
    assert contents(Path("run")) == {}

    holder.kill()
    holder.join()
    run = RunDirectory("run")
    run.lock(resume=False)
    assert json.loads(Path("run/lock").read_text())["pid"] == os.getpid()
    run.unlock()


def resumed(run: Path, shards: Path, *options: str) -> list[Outcome]:
    """`train --resume auto` on two ranks."""
    line = [
        "train",
        str(CONFIG),
        "--resume",
        "auto",
        *overrides(shards, run, "train.duration=2 steps", *options),
    ]
    return run_on_ranks(command, 2, *line)


@pytest.fixture
def copy(finished: Path) -> Path:
    """A copy of the finished run that a test may spoil."""
    shutil.copytree(finished, "run")
    return Path("run")


def assert_refused_once(outcomes: list[Outcome], *parts: str) -> None:
    assert [outcome.code for outcome in outcomes] == [2, 2]
    first, second = (outcome.err for outcome in outcomes)
    assert second == ""
    assert first.count("\n") == 1
    assert "Traceback" not in first
    for part in parts:
        assert part in first


MODEL = ("model.embed_dim=24", "model.moe.num_experts=4")


@pytest.fixture
def other_shards() -> Path:
    """Shards of another data set in the current folder."""
    for split in ("train", "val"):
        pack(synthetic(32, 32, num_classes=10, image_size=32, seed=1), split, Path("other") / split)
    return Path("other")


def test_resume_of_another_model(copy: Path, shards: Path) -> None:
    outcomes = resumed(copy, shards, *MODEL)
    assert_refused_once(
        outcomes,
        "ConfigError: run/checkpoints/step-00000002 ",
        "model.embed_dim: 12 in the checkpoint, 24 now; model.moe.num_experts: 8 in the checkpoint, 4 now",
    )


def test_resume_on_another_data_set(copy: Path, other_shards: Path) -> None:
    outcomes = resumed(copy, other_shards)
    assert_refused_once(outcomes, "DataError: data state: ")


@pytest.mark.parametrize("what", ["model", "data", "seed"])
def test_a_refused_resume_changes_nothing(copy: Path, shards: Path, other_shards: Path, what: str) -> None:
    before = contents(copy)
    options = {"model": MODEL, "seed": ("seed=5",), "data": ()}[what]
    outcomes = resumed(copy, other_shards if what == "data" else shards, *options)
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert contents(copy) == before


def test_a_pointer_to_no_checkpoint(copy: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "checkpoints" / "latest").write_text("step-00000009\n")
    line = ("train", str(CONFIG), "--nproc", "2", *overrides(shards, "run"))
    assert "--resume auto" in refused(capsys, *line)
    first, second = resumed(copy, shards)
    assert [first.code, second.code] == [0, 0]
    notice = first.err.splitlines()[0]
    assert notice.startswith("[rank 0] run/checkpoints/latest ")
    assert "step-00000009" in notice
    assert "['step-00000002']" in notice
    assert second.err == ""


def test_checkpoints_without_a_pointer_are_a_run_all_the_same(
    copy: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "checkpoints" / "latest").unlink()
    line = ("train", str(CONFIG), "--nproc", "2", *overrides(shards, "run"))
    assert "--resume auto" in refused(capsys, *line)


def test_a_damaged_checkpoint(copy: Path, shards: Path) -> None:
    path = copy / "checkpoints" / "step-00000002" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    parts = ("CheckpointError: run/checkpoints ", "step-00000002", "rank 1: __0_0.distcp ", "sha256")
    assert_refused_once(resumed(copy, shards), *parts)


def test_eval_of_what_is_not_there(capsys: pytest.CaptureFixture[str], copy: Path, shards: Path) -> None:
    Path("empty").mkdir()
    for name in ("nowhere", "empty"):
        message = refused(capsys, "eval", name)
        assert message.startswith("ConfigError: ")
        assert message.endswith(f"{name}/config.yaml: No such file or directory\n")
    fresh = Path("fresh")
    fresh.mkdir()
    shutil.copy(copy / "config.yaml", fresh)
    lines = [
        ("eval", "run", "--checkpoint", "step-00000009"),
        ("eval", "fresh"),
        ("eval", "run", "nonsense=1"),
    ]
    missing, empty, option = run_on_ranks(commands, 1, lines)[0]
    assert [outcome.code for outcome in (missing, empty, option)] == [2, 2, 2]
    assert missing.out == empty.out == ""
    assert_names(missing.err, "ConfigError: run/checkpoints has no", "step-00000009", "step-00000002\n")
    assert_names(empty.err, "ConfigError: fresh ", "fresh/checkpoints\n")
    assert option.err.startswith("ConfigError: run/config.yaml ")
    assert "\n  nonsense: " in option.err
