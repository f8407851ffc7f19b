"""`swin-moe preflight`, and the same checks before the first step of `train`: output, files, exit status."""

import json
import re
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

from launcher.cli.program import main
from launcher.preflight import checks as preflight_checks
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, Outcome, command, overrides, start

RATES = r"all-reduce \d+\.\d GB/s, all-to-all \d+\.\d GB/s"


def other_torch_on_rank_1(*arguments: str) -> Outcome:
    real, rank = preflight_checks.version_of, dist.get_rank()
    with mock.patch.object(
        preflight_checks, "version_of", lambda p: "2.0" if (p, rank) == ("torch", 1) else real(p)
    ):
        return command(*arguments)


def both(line: list[str], other: list[str]) -> list[Outcome]:
    """A command on sound ranks, and one with another torch on rank 1."""
    return [command(*line), other_torch_on_rank_1(*other)]


def test_train_begins_with_a_preflight(shards: Path, tmp_path: Path) -> None:
    ran, refused = tmp_path / "ran", tmp_path / "refused"
    lines = [
        ["train", str(CONFIG), *overrides(shards, at, "train.duration=1 steps")] for at in (ran, refused)
    ]
    sound, unlike = zip(*run_on_ranks(both, 2, *lines), strict=True)
    assert [rank.code for rank in sound] == [0, 0], sound[0].err
    line = sound[0].out.splitlines()[0]
    assert re.fullmatch(rf"preflight: \d+ checks in \d+\.\d\d s, {RATES}", line), sound[0].out
    assert "preflight" not in sound[1].out + sound[1].err
    assert [rank.code for rank in unlike] == [2, 2]
    wanted = (
        r"PreflightError: torch: \S+ on rank 0, 2.0 on rank 1 \(node \S+\); install the same version on .*"
    )
    assert re.fullmatch(wanted, unlike[0].err.splitlines()[-1]), unlike[0].err
    assert not (refused / "metrics.jsonl").exists()
    assert not list(ran.glob(".preflight*"))


def test_the_command_on_two_ranks(shards: Path, tmp_path: Path) -> None:
    options = overrides(shards, tmp_path / "run")
    line = ["preflight", str(CONFIG), *options, "--json", str(tmp_path / "all.json"), "--megabytes", "1"]
    sound, unlike = zip(*run_on_ranks(both, 2, line, line[:-4]), strict=True)
    assert [rank.code for rank in sound] == [0, 0], sound[0].err
    table = sound[0].out
    words = (
        "versions",
        "configuration",
        "clocks",
        "run directory",
        "shards",
        "compute",
        "time-outs",
        "links",
    )
    for word in words:
        assert re.search(rf"^ok    {word} ", table, re.MULTILINE), table
    assert re.search(r"^ {6}neighbours  in a node +\d+\.\d\d GB/s  ranks 0-1", table, re.MULTILINE), table
    found = json.loads((tmp_path / "all.json").read_text())
    assert len(found["nodes"]) == 2
    assert found["message_bytes"] == 2**20
    versions = found["checks"]["versions"]
    assert versions["verdict"] == "ok"
    assert versions["by_rank"][0] == versions["by_rank"][1]
    assert {rate["what"] for rate in found["links"]} == {"all_reduce", "all_to_all", "neighbours"}
    assert [rank.code for rank in unlike] == [2, 2]
    assert re.search(r"^FAIL  versions .*\n {6}FAIL: torch: ", unlike[0].out, re.MULTILINE)
    assert not (tmp_path / "run").exists()


def machine_alone() -> Outcome:
    return command("preflight")


def test_the_machine_alone() -> None:
    (rank,) = run_on_ranks(machine_alone, 1)
    assert rank.code == 0, rank.err
    checks = re.findall(r"^(?:ok|warn)  +(\w[\w-]+(?: \w+)?)  ", rank.out, re.MULTILINE)
    assert checks == ["versions", "clocks", "scratch", "compute", "time-outs", "limits", "links"]
    assert "one rank: nothing to measure" in rank.out


def test_a_configuration_that_train_would_refuse(shards: Path, tmp_path: Path) -> None:
    options = overrides(shards, tmp_path / "run", "train.global_batch_size=17")
    rank = run_on_ranks(command, 2, "preflight", str(CONFIG), *options)[0]
    assert rank.code == 2
    assert "must divide train.global_batch_size (17)" in rank.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--nproc", "0"), "ConfigError: --nproc (0) must be above 0"),
        (("--megabytes", "-1"), "ConfigError: --megabytes (-1.0) must be above 0"),
        (
            ("--json", "no/x.json"),
            "ConfigError: --json (no/x.json): there is no directory no; make it first",
        ),
        (("--json", "."), "ConfigError: --json (.) is a directory; name a file"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], line: str) -> None:
    assert main(["preflight", *arguments]) == 2
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.slow
def test_ranks_of_its_own(shards: Path, tmp_path: Path) -> None:
    arguments = ("preflight", str(CONFIG), *overrides(shards, "run"), "--nproc", "2")
    out, err = (process := start(*arguments, cwd=tmp_path)).communicate(timeout=120)
    assert process.returncode == 0, err
    assert re.search(rf"^\d+ checks in \d+\.\d\d s, {RATES}$", out, re.MULTILINE), out
