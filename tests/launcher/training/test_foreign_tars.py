"""Training on tars without a manifest: what it says, what it records, and what it refuses."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from launcher.cli.program import main
from launcher.exit_codes import ExitCode
from tests.distributed import RankError, run_on_ranks
from tests.launcher.running import CONFIG, EXACT, Outcome, command, evaluations, only, overrides, start, steps

SCHEDULE = (
    "train.duration=6 steps",
    "train.eval_every=48 images",
    "checkpoint.every=2 steps",
    "checkpoint.asynchronous=false",
)
PATTERN = "train/{000000..000003}.tar"
NEEDS = (
    "needs the number of images, which only a manifest tells (`swin-moe shards index` writes it); give it in "
    "steps or images"
)


def line(shards: Path, run: Path | str, *more: str) -> list[str]:
    """The command line of a run on the tars of the training split, whose manifest is not looked at."""
    options = overrides(shards, run, f"data.train={shards}/{PATTERN}", "parallel.ep_size=2", *SCHEDULE, *more)
    return ["train", str(CONFIG), "--resume", "auto", *options]


def trained(*arguments: str) -> list[Outcome]:
    outcomes = run_on_ranks(command, 2, *arguments)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    return outcomes


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """An uninterrupted run of six steps on two ranks, and what it printed; only read."""
    run = tmp_path_factory.mktemp("finished") / "run"
    return run, trained(*line(shards, run))


def test_a_run_says_what_it_cannot_promise_and_records_what_it_knows(
    finished: tuple[Path, list[Outcome]], shards: Path
) -> None:
    run, (first, second) = finished
    assert f"{shards}/{PATTERN}: no manifest, so webdataset" in first.err
    for words in ("exactly-once", "exact resume", "number of ranks", "integrity", "fault tolerance"):
        assert words in first.err
    assert "step 6/6" in first.err
    assert "in all of training" in first.out
    assert (second.out, second.err) == ("", "")
    assert [record["step"] for record in steps(run)] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in evaluations(run)] == [3, 6]
    assert all(record["eval_images"] == 64 for record in evaluations(run))
    counted = [record["data"] for record in steps(run)]
    assert all(data.keys() == {"bytes"} for data in counted)
    assert counted[-1]["bytes"] >= counted[0]["bytes"] > 0
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("data/bytes")] == [data["bytes"] for data in counted]
    assert json.loads((run / "summary.json").read_text())["steps"] == 6


def test_the_same_run_twice_is_the_same(
    finished: tuple[Path, list[Outcome]], shards: Path, tmp_path: Path
) -> None:
    trained(*line(shards, tmp_path / "run"))
    found, wanted = (
        [only(record, EXACT) for record in steps(run)] for run in (tmp_path / "run", finished[0])
    )
    assert found == wanted


def test_killed_and_resumed_counts_on_in_a_new_order(
    finished: tuple[Path, list[Outcome]], shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(RankError, match="died with exit code -9"):
        run_on_ranks(partial(command, kill=("step", 3)), 2, *line(shards, run))
    resumed = trained(*line(shards, run))
    assert "a resumed run starts a new order" in resumed[0].err
    assert [record["step"] for record in steps(run)] == [1, 2, 3, 4, 5, 6]
    found, wanted = ([only(record, EXACT) for record in steps(path)] for path in (run, finished[0]))
    assert found[:2] == wanted[:2]
    assert found[2] != wanted[2]
    manifest = json.loads((run / "checkpoints" / "step-00000006" / "manifest.json").read_text())
    assert manifest["state"]["data"] == {"version": 1, "webdataset": f"{shards}/{PATTERN}", "samples": 96}


def test_check_says_it_too(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = overrides(shards, "run", f"data.train={shards}/{PATTERN}", "train.duration=100 images")
    assert main(["check", str(CONFIG), "--nproc", "2", *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"{CONFIG} is valid\n" in out
    assert "  training data    4 tars without a manifest (" in out
    assert "  length           7 steps = 112 images\n" in out
    assert f"{shards}/{PATTERN}: no manifest, so webdataset" in out


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("train.duration=300 epochs", "optim.warmup=20 epochs", "checkpoint.every=1 epochs"),  # defaults
            "ConfigError: 3 things to correct:\n"
            f"  train.duration: '300 epochs' {NEEDS}\n"
            f"  optim.warmup: '20 epochs' {NEEDS}\n"
            f"  checkpoint.every: '1 epochs' {NEEDS}\n",
        ),
        (
            ("train.eval_every=1 epochs",),
            f"ConfigError: one thing to correct:\n  train.eval_every: '1 epochs' {NEEDS}\n",
        ),
        (
            ("data.train='{shards}/train/{{000000..000004}}.tar'",),
            "ConfigError: one thing to correct:\n  data.train: {shards}/train/000004.tar: no such tar; check "
            "the pattern {shards}/train/{{000000..000004}}.tar\n",
        ),
        (
            ("data.train='s3://bucket/{{0..3}}.tar'",),
            "ConfigError: one thing to correct:\n  data.train: s3://bucket/0.tar: scheme s3 is not allowed "
            "here; use a path or file, gs, http, https, pipe, such as pipe:aws s3 cp "
            "s3://bucket/{{000..146}}.tar -\n",
        ),
        (
            ("data.val='{shards}/val/{{000000..000000}}.tar'",),
            f"ConfigError: {CONFIG} is not a valid RunConfig:\n"
            "  data.val ({shards}/val/{{000000..000000}}.tar) must be shards with a manifest, as evaluation "
            "counts every image once; `swin-moe shards index` writes it\n",
        ),
    ],
)
def test_options(
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    more = [option.format(shards=shards) for option in options]
    assert main([*line(shards, tmp_path / "run", *more), "--nproc", "2"]) == 2
    assert capsys.readouterr() == ("", message.format(shards=shards))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("first", ["tars", "split"])
def test_resume_of_the_other_kind(
    finished: tuple[Path, list[Outcome]], shards: Path, tmp_path: Path, first: str
) -> None:
    run, split, short = tmp_path / "run", f"data.train={shards}/train", "train.duration=2 steps"
    if first == "tars":
        shutil.copytree(finished[0], run)
        message = "of tars without a manifest, not of synthetic/train"
    else:
        trained(*line(shards, run, split, short))
        message = f"of synthetic/train, which has a manifest, not of {shards}/{PATTERN}"
    outcomes = run_on_ranks(command, 2, *line(shards, run, split if first == "tars" else short))
    assert [outcome.code for outcome in outcomes] == [2, 2]
    fix = "read what the run was trained on, or start it anew"
    assert [outcome.err for outcome in outcomes] == [f"DataError: data state: {message}; {fix}\n", ""]


@pytest.mark.slow
def test_a_label_beyond_the_classes_ends_the_run(shards: Path, tmp_path: Path) -> None:
    """On processes of their own, as the other ranks wait for the one that found it."""
    pack(synthetic(64, 16, num_classes=20, image_size=32), "train", tmp_path / "data", samples_per_shard=32)
    pattern = f"data.train={tmp_path}/data/{{000000..000001}}.tar"
    program = start(*line(shards, "run", pattern), "--nproc", "2", cwd=tmp_path)
    _, err = program.communicate(timeout=120)
    assert program.returncode == ExitCode.DATA
    assert "Traceback" not in err
    errors = [text for text in err.splitlines() if text.startswith("RankError: ")]
    assert f"step 1: {tmp_path}/data/00000" in errors[0]
    assert errors[0].endswith("; it needs one, and a label below 10")
