"""What a user can get wrong: exit status 2, one clear message, no traceback, and nothing half-written."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pytest

from data_shards.format.index import read_index
from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from launcher.cli.program import main
from launcher.rundir.directory import RunDirectory
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, Outcome, command, commands, descendants, is_alive, overrides, start

ONE = "ConfigError: one thing to correct:\n  "
INVALID = f"ConfigError: {CONFIG} is not a valid RunConfig:\n  "
FORMS = "a duration reads '20 epochs', '0.5 epochs', '500 steps' or '1_000_000 images', not "
FIX = "Run again the `swin-moe shards pack` that made them: it rewrites what is missing or damaged"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that is refused before any rank starts."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def train_refused(capsys: pytest.CaptureFixture[str], shards: Path, *options: str) -> str:
    """The message of `train --nproc 2` with options that are refused; no run directory is made."""
    message = refused(capsys, "train", str(CONFIG), "--nproc", "2", *overrides(shards, "run", *options))
    assert not Path("run").exists()
    return message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("optim.wamup=3",), INVALID + "optim.wamup: no such option; did you mean optim.warmup?\n"),
        (
            ("train.global_batch_size=many",),
            INVALID
            + "train.global_batch_size: Input should be a valid integer, unable to parse string as an "
            "integer (got 'many')\n",
        ),
        (
            ("optim.wamup=3", "train.precision=fp8", "model.moe.top_k=9"),
            INVALID + "optim.wamup: no such option; did you mean optim.warmup?\n"
            "  model.moe.top_k (9) must lie in 1..model.moe.num_experts (8)\n"
            "  train.precision: Input should be 'fp32', 'bf16' or 'fp16' (got 'fp8')\n",
        ),
        (
            ("model.moe.num_experts=1", "model.moe.top_k=1", "parallel.ep_size=2"),
            ONE
            + "parallel.ep_size (2) / parallel.expert_slices (1) must be at most model.moe.num_experts (1); "
            "parallel.expert_slices=2 would do\n",
        ),
        (
            ("parallel.ep_size=4",),
            ONE + "parallel.ep_size (4) must divide the number of ranks (2); parallel.ep_size=2 would do\n",
        ),
        (
            ("parallel.ep_size=3", "parallel.expert_slices=2"),
            "ConfigError: 2 things to correct:\n"
            "  parallel.expert_slices (2) must divide parallel.ep_size (3)\n"
            "  parallel.ep_size (3) must divide the number of ranks (2); parallel.ep_size=2 would do\n",
        ),
        (
            ("model.moe=null", "parallel.ep_size=2"),
            ONE + "parallel.ep_size (2) needs experts: set model.moe, or 1\n",
        ),
        (
            ("data.train=nowhere/train",),
            ONE + "data.train: nowhere/train: no such directory; make the shards first, for example: "
            "swin-moe shards pack --source fashion-mnist --out data/fashion-mnist\n",
        ),
        (
            ("train.global_batch_size=24",),
            ONE + "train.micro_batch_size (8) x ranks (2) must divide train.global_batch_size (24); "
            "train.micro_batch_size=4 would do\n",
        ),
        (
            ("train.micro_batch_size=2",),
            ONE + "model.moe.routing_group_images (4) must divide train.micro_batch_size (2)\n",
        ),
        (
            ("model.moe.eval_capacity_factor=2.0", "train.eval_batch_size=6"),
            ONE + "model.moe.routing_group_images (4) must divide train.eval_batch_size (6)\n",
        ),
        (
            ("deepspeed.zero_optimization.sub_grup_size=5",),
            ONE + "deepspeed.zero_optimization.sub_grup_size: Extra inputs are not permitted\n",
        ),
        (("train.duration=soon",), ONE + f"train.duration: {FORMS}'soon'\n"),
        (
            ("train.duration=0 epochs", "checkpoint.every=x"),
            "ConfigError: 2 things to correct:\n"
            "  train.duration (0 epochs) must be more than nothing\n"
            f"  checkpoint.every: {FORMS}'x'\n",
        ),
    ],
)
def test_options(
    capsys: pytest.CaptureFixture[str], shards: Path, options: tuple[str, ...], message: str
) -> None:
    assert train_refused(capsys, shards, *options) == message


def test_check_finds_the_same_without_ranks(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    line = ["check", str(CONFIG), *overrides(shards, "run", "parallel.ep_size=3", "parallel.expert_slices=2")]
    assert refused(capsys, *line) == ONE + "parallel.expert_slices (2) must divide parallel.ep_size (3)\n"
    assert not Path("run").exists()


def test_classes_of_the_shards(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    assert train_refused(capsys, shards, "model.num_classes=7") == (
        "ConfigError: 2 things to correct:\n"
        f"  model.num_classes (7) must be the classes of data.train (10 in {shards}/train)\n"
        f"  model.num_classes (7) must be the classes of data.val (10 in {shards}/val)\n"
    )


def test_truncated_and_missing_shards(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    shutil.copytree(shards, "data")
    os.truncate("data/train/000001.tar", 1000)
    Path("data/train/000003.tar").unlink()
    size = (shards / "train" / "000001.tar").stat().st_size
    assert train_refused(capsys, Path("data")) == (
        f"{ONE}data.train: shards are damaged:\n"
        f"  data/train/000001.tar: expected {size} bytes, found 1000\n"
        f"  data/train/000003.tar: No such file or directory, expected {size} bytes\n"
        f"{FIX}\n"
    )


@pytest.mark.parametrize(
    ("directory", "reason"),
    [("file/run", "Not a directory"), ("/proc/run", "No such file or directory")],  # root may write elsewhere
)
def test_run_directory_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], shards: Path, directory: str, reason: str
) -> None:
    Path("file").touch()
    assert train_refused(capsys, shards, f"run_dir={directory}") == (
        f"{ONE}run_dir ({directory}) cannot be written: {reason}; choose another run_dir\n"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ("tain",),
            "invalid choice: 'tain' (choose from 'check', 'train', 'config', 'eval', 'preflight', 'plan', "
            "'shards', 'bench', 'models', 'convert', 'export', 'checkpoint', 'slurm', 'study')",
        ),
        (
            (),
            "the following arguments are required: check | train | config | eval | preflight | plan | "
            "shards | bench | models | convert | export | checkpoint | slurm | study",
        ),
        (("train", str(CONFIG), "--rseume", "auto"), "unrecognized arguments: --rseume auto"),
        (("train", str(CONFIG), "--nproc", "x"), "--nproc: must be a whole number of at least 1 (got 'x')"),
        (("train", str(CONFIG), "--nproc", "0"), "--nproc: must be a whole number of at least 1 (got '0')"),
        (("eval", "run", "--checkpoint"), "--checkpoint: expected one argument"),
    ],
)
def test_command_line(capsys: pytest.CaptureFixture[str], line: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        main(list(line))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: swin-moe")
    assert err.count("error:") == 1
    assert err.endswith(message + "\n")


def test_no_such_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    Path("debug.yaml").touch()
    assert refused(capsys, "train", "debgu.yaml") == (
        "ConfigError: cannot read debgu.yaml: No such file or directory; did you mean debug.yaml?\n"
    )


def test_nproc_under_torchrun(
    capsys: pytest.CaptureFixture[str], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "::1", "MASTER_PORT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert train_refused(capsys, shards) == (
        "LaunchError: --nproc starts ranks by itself; leave it out under torchrun\n"
    )


# --- the run directory -------------------------------------------------------------------------------


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
    message = (
        f"ConfigError: run_dir ({finished}) holds a run already; continue it with --resume auto, or choose "
        "another run_dir\n"
    )
    assert refused(capsys, *line, "--nproc", "2") == message
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
    assert message.startswith("ConfigError: run_dir (run) is in use by ")
    assert f'"pid": {holder.pid}' in message
    assert message.endswith("; wait for it, or choose another run_dir\n")
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
def other_shards(folder: Path) -> Path:
    for split in ("train", "val"):
        pack(synthetic(32, 32, num_classes=10, image_size=32, seed=1), split, folder / "other" / split)
    return folder / "other"


def test_resume_of_another_model(copy: Path, shards: Path) -> None:
    outcomes = resumed(copy, shards, *MODEL)
    assert_refused_once(
        outcomes,
        "ConfigError: run/checkpoints/step-00000002 is of another run: ",
        "model.embed_dim: 12 in the checkpoint, 24 now; model.moe.num_experts: 8 in the checkpoint, 4 now",
    )


def test_resume_on_another_data_set(copy: Path, other_shards: Path) -> None:
    outcomes = resumed(copy, other_shards)
    assert_refused_once(outcomes, "DataError: data state: manifest of another data set: ", "start it anew")


@pytest.mark.parametrize("what", ["model", "data", "seed"])
def test_a_refused_resume_changes_nothing(copy: Path, shards: Path, other_shards: Path, what: str) -> None:
    before = contents(copy)
    options = {"model": MODEL, "seed": ("seed=5",), "data": ()}[what]
    outcomes = resumed(copy, other_shards if what == "data" else shards, *options)
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert contents(copy) == before


def test_a_pointer_to_no_checkpoint(copy: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "checkpoints" / "latest").write_text("step-00000009\n")
    message = (
        "run/checkpoints/latest names step-00000009, which is not a checkpoint; write the name of one of "
        "['step-00000002'] into it\n"
    )
    line = ("train", str(CONFIG), "--nproc", "2", *overrides(shards, "run"))
    assert "holds a run already; continue it with --resume auto" in refused(capsys, *line)
    first, second = resumed(copy, shards)
    assert [first.code, second.code] == [0, 0]
    notice = message.replace("into it\n", "into it; taking the newest that is whole\n")
    assert first.err.startswith(notice)
    assert second.err == ""


def test_checkpoints_without_a_pointer_are_a_run_all_the_same(
    copy: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "checkpoints" / "latest").unlink()
    line = ("train", str(CONFIG), "--nproc", "2", *overrides(shards, "run"))
    assert "holds a run already; continue it with --resume auto" in refused(capsys, *line)


DAMAGED = (
    "CheckpointError: run/checkpoints holds no checkpoint that is whole: step-00000002 is damaged: rank 1: "
    "__0_0.distcp is damaged: its sha256 is not the manifest's. "
)


def test_a_damaged_checkpoint(copy: Path, shards: Path) -> None:
    path = copy / "checkpoints" / "step-00000002" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert_refused_once(resumed(copy, shards), DAMAGED)


def test_eval_of_what_is_not_there(
    capsys: pytest.CaptureFixture[str], copy: Path, folder: Path, shards: Path
) -> None:
    Path("empty").mkdir()
    for name in ("nowhere", "empty"):
        assert refused(capsys, "eval", name) == (
            f"ConfigError: cannot read {name}/config.yaml: No such file or directory\n"
        )
    fresh = Path("fresh")
    fresh.mkdir()
    shutil.copy(copy / "config.yaml", fresh)
    lines = [
        ("eval", "run", "--checkpoint", "step-00000009"),
        ("eval", "fresh"),
        ("eval", "run", "nonsense=1"),
    ]
    missing, empty, option = run_on_ranks(commands, 1, lines)[0]
    assert missing == Outcome(
        code=2,
        out="",
        err="ConfigError: run has no checkpoint step-00000009; they lie in run/checkpoints\n",
    )
    assert empty == Outcome(
        code=2, out="", err="ConfigError: fresh has no checkpoint yet; they lie in fresh/checkpoints\n"
    )
    assert option.code == 2
    assert option.err.startswith("ConfigError: run/config.yaml is not a valid RunConfig:\n  nonsense: ")


# --- data that breaks in mid-run ---------------------------------------------------------------------


class Broken(NamedTuple):
    """What became of a run on two ranks one of whose shards has a flipped byte."""

    split: str
    code: int
    err: str
    ranks: list[int]


@pytest.fixture(scope="module", params=["train", pytest.param("val", marks=pytest.mark.slow)])
def broken(request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Broken:
    split, folder = request.param, tmp_path_factory.mktemp("broken")
    shutil.copytree(shards, folder / "data")
    path = folder / "data" / split / "000000.tar"
    tar, offset = bytearray(path.read_bytes()), int(read_index(path.with_suffix(".idx"))[40]["offset"])
    tar[offset + 200] ^= 255
    path.write_bytes(tar)
    asked = "parallel.ep_size=2", "train.eval_every=1 steps", "data.bad_samples=stop"
    options = overrides(folder / "data", "run", *asked)
    program = start("train", str(CONFIG), "--nproc", "2", *options, cwd=folder)
    ranks: list[int] = []
    while len(ranks) < 2 and program.poll() is None:
        ranks = descendants(program.pid)
        time.sleep(0.02)
    out, err = program.communicate(timeout=120)
    assert all(line.startswith(("layout: ", "  ", "preflight: ")) for line in out.splitlines())
    assert "accuracy" not in out
    return Broken(split, program.returncode, err, ranks)


def test_broken_data_ends_the_program_and_its_ranks(broken: Broken) -> None:
    assert broken.code == 82
    assert len(broken.ranks) >= 2
    assert not any(map(is_alive, broken.ranks))


def test_broken_data_is_named(broken: Broken) -> None:
    (line,) = [line for line in broken.err.splitlines() if line.startswith("RankError: ")]
    assert "rank " in line
    assert f"data/{broken.split}/000000.tar: sample 00000040 at byte " in line


def test_broken_data_gives_no_traceback(broken: Broken) -> None:
    assert "Traceback" not in broken.err
