"""What a user can get wrong: exit status 2, one clear message, no traceback, and nothing half-written."""

import os
import shutil
from pathlib import Path

import pytest

from launcher.cli.program import main
from tests.launcher.refusals import refused
from tests.launcher.running import CONFIG, overrides
from tests.messages import assert_each_names, assert_names

FORMS = ("20 epochs", "0.5 epochs", "500 steps", "1_000_000 images")  # of a duration


def train_refused(capsys: pytest.CaptureFixture[str], shards: Path, *options: str) -> str:
    """The message of `train --nproc 2` with options that are refused; no run directory is made."""
    message = refused(capsys, "train", str(CONFIG), "--nproc", "2", *overrides(shards, "run", *options))
    assert not Path("run").exists()
    return message


def assert_errors(message: str, *errors: tuple[str, ...], headline: str = "ConfigError: ") -> None:
    """A headline, and below it one line for each error, which holds all of its parts."""
    first, *lines = message.removesuffix("\n").split("\n  ")
    assert first.startswith(headline)
    assert_each_names(lines, *errors)


INVALID = f"ConfigError: {CONFIG} is not a valid RunConfig:"


@pytest.mark.parametrize(
    ("options", "errors"),
    [
        (("optim.wamup=3",), [("optim.wamup: ", "optim.warmup?")]),
        (("train.global_batch_size=many",), [("train.global_batch_size: ", "valid integer", "'many'")]),
        (
            ("optim.wamup=3", "train.precision=fp8", "model.moe.top_k=9"),
            [
                ("optim.wamup: ", "optim.warmup?"),
                ("model.moe.top_k (9)", "model.moe.num_experts (8)"),
                ("train.precision: ", "'fp32', 'bf16' or 'fp16'", "'fp8'"),
            ],
        ),
    ],
)
def test_options_that_a_file_cannot_hold(
    capsys: pytest.CaptureFixture[str],
    shards: Path,
    options: tuple[str, ...],
    errors: list[tuple[str, ...]],
) -> None:
    assert_errors(train_refused(capsys, shards, *options), *errors, headline=INVALID)


@pytest.mark.parametrize(
    ("options", "errors"),
    [
        (
            ("model.moe.num_experts=1", "model.moe.top_k=1", "parallel.ep_size=2"),
            [
                (
                    "parallel.ep_size (2) / parallel.expert_tensor_parallel_size (1)",
                    "model.moe.num_experts (1)",
                    "parallel.expert_tensor_parallel_size=2",
                )
            ],
        ),
        (("parallel.ep_size=4",), [("parallel.ep_size (4)", "ranks (2)", "parallel.ep_size=2")]),
        (
            ("parallel.ep_size=3", "parallel.expert_tensor_parallel_size=2"),
            [
                ("parallel.expert_tensor_parallel_size (2)", "parallel.ep_size (3)"),
                ("parallel.ep_size (3)", "ranks (2)", "parallel.ep_size=2"),
            ],
        ),
        (("model.moe=null", "parallel.ep_size=2"), [("parallel.ep_size (2)", "model.moe")]),
        (
            ("data.train=nowhere/train",),
            [
                (
                    "data.train: nowhere/train: ",
                    "swin-moe shards pack --source folder --directory IMAGES --out nowhere",
                )
            ],
        ),
        (
            ("train.global_batch_size=24",),
            [
                (
                    "train.micro_batch_size (8) x ranks (2)",
                    "train.global_batch_size (24)",
                    "train.micro_batch_size=4",
                )
            ],
        ),
        (
            ("train.micro_batch_size=2",),
            [("model.moe.routing_group_images (4)", "train.micro_batch_size (2)")],
        ),
        (
            ("model.moe.eval_capacity_factor=2.0", "train.eval_batch_size=6"),
            [("model.moe.routing_group_images (4)", "train.eval_batch_size (6)")],
        ),
        (
            ("deepspeed.zero_optimization.sub_grup_size=5",),
            [("deepspeed.zero_optimization.sub_grup_size: ",)],
        ),
        (("train.duration=soon",), [("train.duration: ", *FORMS, "'soon'")]),
        (
            ("train.duration=0 epochs", "checkpoint.every=x"),
            [("train.duration (0 epochs)",), ("checkpoint.every: ", *FORMS, "'x'")],
        ),
    ],
)
def test_options_that_the_ranks_or_the_data_cannot_have(
    capsys: pytest.CaptureFixture[str],
    shards: Path,
    options: tuple[str, ...],
    errors: list[tuple[str, ...]],
) -> None:
    assert_errors(train_refused(capsys, shards, *options), *errors)


def test_check_finds_the_same_without_ranks(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    line = [
        "check",
        str(CONFIG),
        *overrides(shards, "run", "parallel.ep_size=3", "parallel.expert_tensor_parallel_size=2"),
    ]
    assert_errors(
        refused(capsys, *line), ("parallel.expert_tensor_parallel_size (2)", "parallel.ep_size (3)")
    )
    assert not Path("run").exists()


def test_classes_of_the_shards(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    assert_errors(
        train_refused(capsys, shards, "model.num_classes=7"),
        ("model.num_classes (7)", "data.train", f"10 in {shards}/train"),
        ("model.num_classes (7)", "data.val", f"10 in {shards}/val"),
    )


def test_truncated_and_missing_shards(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    shutil.copytree(shards, "data")
    os.truncate("data/train/000001.tar", 1000)
    Path("data/train/000003.tar").unlink()
    size = (shards / "train" / "000001.tar").stat().st_size
    message, advice = train_refused(capsys, Path("data")).removesuffix("\n").rsplit("\n", 1)
    assert_errors(
        message,
        ("data.train: ",),
        ("data/train/000001.tar: ", f"{size} bytes", "1000"),
        ("data/train/000003.tar: No such file or directory", f"{size} bytes"),
    )
    assert "`swin-moe shards pack`" in advice


@pytest.mark.parametrize(
    ("directory", "reason"),
    [("file/run", "Not a directory"), ("/proc/run", "No such file or directory")],  # root may write elsewhere
)
def test_run_directory_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], shards: Path, directory: str, reason: str
) -> None:
    Path("file").touch()
    message = train_refused(capsys, shards, f"run_dir={directory}")
    assert_errors(message, (f"run_dir ({directory})", reason))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("tain",), "error: no command 'tain'; did you mean train?"),
        (("slurm", "statsu"), "error: no command 'statsu'; did you mean status?"),
        (("fly", "runs/a"), "error: no command 'fly'; see swin-moe --help"),
        ((), "error: which command? See swin-moe --help"),
        (("slurm",), "error: which command? See swin-moe slurm --help"),
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
    message = refused(capsys, "train", "debgu.yaml")
    assert_names(message, "ConfigError: ", "debgu.yaml: No such file or directory", "debug.yaml?")


def test_nproc_under_torchrun(
    capsys: pytest.CaptureFixture[str], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "::1", "MASTER_PORT": "1"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    message = train_refused(capsys, shards)
    assert message.startswith("LaunchError: --nproc ")
    assert message.endswith("torchrun\n")
    assert message.count("\n") == 1
