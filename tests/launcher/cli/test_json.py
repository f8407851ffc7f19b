"""`--json`: every command has it, stdout is one document, and the document says what happened."""

import json
import math
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_shards.format.index import Manifest
from launcher.cli.program import main, program_parser
from launcher.config.load import load_config
from launcher.console.answers import answering, plain
from parallel.checkpoint.commit import committed, latest
from tests.distributed import run_on_ranks
from tests.launcher.fake_slurm import FakeSlurm
from tests.launcher.running import CONFIG, command, overrides
from tests.launcher.stored_runs import at

WITHOUT = {  # commands without a result of their own, and why
    "train": "the result is RUN/summary.json, and the ranks print progress",
    "serve": "it runs until it is stopped, and answers over HTTP",
    "slurm logs": "it prints the text of a log",
    "completion": "its output is a script for a shell",
}
Ask = Callable[..., Any]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs a command with --json: the document; all of stdout must be one."""

    def run(*line: Any, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*map(str, line), "--json"]) == code
        return json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(text))

    return run


def leaves() -> list[Any]:
    """The parsers of commands that do something."""
    return [one for one in program_parser().commands() if one.get_default("run")]


def test_every_command_has_json_or_a_reason() -> None:
    without = [
        one.prog.removeprefix("swin-moe ") for one in leaves() if "--json" not in one._option_string_actions
    ]
    assert without == list(WITHOUT)
    assert len(leaves()) > 20


def test_an_error_leaves_stdout_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(CONFIG), "train.duration=never", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ConfigError: ")


def test_text_goes_to_stderr_and_values_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    args = Namespace(json=True)
    with answering(args):
        print("progress")
        args.answer = {"a": Path("b"), "n": math.nan, "i": -math.inf, "t": (1, {2})}
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"a": "b", "n": None, "i": None, "t": [1, [2]]}, "progress\n")
    with answering(args):
        pass
    assert capsys.readouterr().out == ""  # a rank without a result
    with answering(Namespace(json=Path("file"))):
        print("text")
    assert capsys.readouterr().out == "text\n"
    assert plain([Path("x"), 1.5, None, True]) == ["x", 1.5, None, True]


def test_check_config_and_options(ask: Ask, shards: Path, tmp_path: Path) -> None:
    options = overrides(shards, tmp_path / "run")
    found = ask("check", CONFIG, *options)
    assert (found["valid"], found["run_dir"]) == (True, str(tmp_path / "run"))
    assert any("256 images" in line for line in found["lines"])
    tree = ask("config", CONFIG, *options)
    assert tree["model"]["image_size"] == 16
    assert tree["optim"]["base_lr"] == load_config(CONFIG, options).optim.base_lr
    (change,) = ask("config", CONFIG, "seed=7", "--diff", CONFIG)
    assert (change["name"], change["before"]) == ("seed", 7)
    (option,) = ask("options", "keep_best")
    assert (option["name"], option["default"]) == ("checkpoint.keep_best", "0")


def test_shards(ask: Ask, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    sizes = ("--synthetic-train", 8, "--synthetic-val", 4, "--synthetic-size", 16)
    made = ask("shards", "pack", "--source", "synthetic", "--out", out, *sizes)
    manifests = {split: Manifest.load(out / split) for split in ("train", "val")}
    assert {one["split"]: (one["samples"], one["digest"]) for one in made} == {
        split: (manifest.samples, manifest.digest) for split, manifest in manifests.items()
    }
    facts = {one["split"]: one for one in ask("shards", "info", out)}
    assert sum(facts["train"]["samples_per_class"]) == 8
    assert facts["val"]["classes"] == list(manifests["val"].classes)
    found = ask("shards", "verify", out)
    assert found["intact"]
    assert [split["samples"] for split in found["splits"]] == [8, 4]
    tar = out / "val" / manifests["val"].shards[0].name
    tar.write_bytes(tar.read_bytes()[:-2000].replace(b"\xff\xd8", b"\0\0"))
    damaged = ask("shards", "verify", out / "val", code=1)
    assert not damaged["intact"]
    assert {"shard", "key", "reason"} == set(damaged["splits"][0]["bad"][0])
    assert not ask("shards", "repair", out / "val", code=1)["intact"]
    parts = ask("shards", "split", shards / "train", "--out", tmp_path / "split", "--val-per-class", 2)
    assert sum(one["samples"] for one in parts) == 256
    tars = tmp_path / "tars"
    tars.mkdir()
    for file in (shards / "val").glob("*.tar"):
        shutil.copy(file, tars)
    assert ask("shards", "index", tars, "--split", "val")["samples"] == 64


def test_checkpoints(ask: Ask, stored_run: Path) -> None:
    directory = stored_run / "checkpoints"
    names = [path.name for path in committed(directory)]
    rows = ask("checkpoint", "ls", stored_run)
    assert [row["name"] for row in rows if not row["partial"]] == names
    newest = latest(directory)
    assert newest is not None
    assert [row["name"] for row in rows if row["latest"]] == [newest.name]
    verified = ask("checkpoint", "verify", at(stored_run, 10))
    assert verified == {"intact": True, "checked": [{"path": str(at(stored_run, 10)), "problems": []}]}
    same = ask("checkpoint", "diff", stored_run, 10, 10)
    assert (same["identical"], same["gaps"], same["a"]) == (True, [], str(at(stored_run, 10)))
    other = ask("checkpoint", "diff", stored_run, 10, 20, code=1)
    assert not other["identical"]
    planned = ask("checkpoint", "prune", stored_run, "--keep-last", 1, "--dry-run")
    assert planned["dry_run"]
    assert [path.name for path in committed(directory)] == names
    done = ask("checkpoint", "prune", stored_run, "--keep-last", 1)
    assert (done["deleted"], done["kept"]) == (planned["deleted"], planned["kept"])
    assert [path.name for path in committed(directory)] == done["kept"]


def test_an_evaluation_and_an_export(shards: Path, tmp_path: Path, ask: Ask) -> None:
    run = tmp_path / "run"
    options = ("train.duration=1 steps", "parallel.ep_size=1")
    trained, evaluated = run_on_ranks(
        both, 1, ["train", str(CONFIG), *overrides(shards, run, *options)], ["eval", str(run), "--json"]
    )[0]
    assert (trained.code, evaluated.code) == (0, 0), evaluated.err
    found = json.loads(evaluated.out)
    path = Path(found["directory"])
    assert found["evaluation"] == json.loads((path / "evaluation.json").read_text())
    assert f"top-1 {found['evaluation']['modes'][0]['top1']:.2%}" in evaluated.err
    written = ask("export", run, tmp_path / "out.safetensors")
    assert (written["wrote"], written["format"]) == (str(tmp_path / "out.safetensors"), "native")
    again = ask("convert", written["wrote"], tmp_path / "again.safetensors")
    assert again["tensors"] == written["tensors"] > 0


def both(*lines: list[str]) -> list[Any]:
    return [command(*line) for line in lines]


def test_two_ranks_print_one_document(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lines = (
        ["train", str(CONFIG), *overrides(shards, run, "train.duration=1 steps", "parallel.ep_size=2")],
        ["eval", str(run), "--json"],
    )
    outcomes = run_on_ranks(both, 2, *lines)
    assert [one[1].code for one in outcomes] == [0, 0], outcomes[0][1].err
    assert json.loads(outcomes[0][1].out)["evaluation"]["ranks"] == 2
    assert outcomes[1][1].out == ""


def test_slurm(slurm: FakeSlurm, shards: Path) -> None:
    line = ["submit", CONFIG, *overrides(shards, "run")]
    shown = json.loads(slurm.say(*line, "--dry-run", "--json").out)
    assert shown["job"] is None
    assert shown["script"].startswith("#!/bin/bash")
    done = slurm.say(*line, "--json")
    found = json.loads(done.out)
    assert (found["job"], found["tasks"]) == ("7", [])
    assert Path(found["script"]) == slurm.home / "run" / "slurm" / "job.sbatch"
    assert "job 7 submitted" in done.err
    (row,) = json.loads(slurm.say("list", ".", "--json").out)
    assert (row["run"], row["job"], row["state"]) == ("run", "7", "not started")
    slurm.set(queue="7|7|RUNNING|1:02|n[1-2]|None\n")
    cancelled = json.loads(slurm.say("cancel", "run", "--json").out)
    assert cancelled["jobs"] == [{"job": "7", "action": "stops, saved"}]
    slurm.set(queue="")
    assert json.loads(slurm.say("resume", "run", "--json").out)["job"]
