"""The command line: its help teaches, and overrides may stand between options."""

from pathlib import Path

import pytest

from launcher.cli.program import main
from tests.launcher.running import CONFIG, overrides


@pytest.mark.parametrize(
    ("command", "examples"),
    [
        ((), ("swin-moe shards pack", "swin-moe check", "swin-moe train", "swin-moe eval")),
        (("check",), ("swin-moe check",)),
        (("train",), ("swin-moe train configs/demo_cpu.yaml --nproc 2", "--resume auto", "torchrun", "srun")),
        (("eval",), ("swin-moe eval runs/demo_cpu --nproc 2",)),
        (("preflight",), ("swin-moe preflight configs/demo_cpu.yaml --nproc 2", "srun")),
        (("shards",), ("pack", "verify", "info")),
        (("shards", "pack"), ("swin-moe shards pack --source fashion-mnist",)),
        (("shards", "verify"), ("swin-moe shards verify data/fashion-mnist",)),
        (("shards", "info"), ("swin-moe shards info data/fashion-mnist",)),
        (("slurm",), ("submit", "status", "logs", "cancel", "resume")),
        (("study", "run"), ("swin-moe study run configs/studies/fashion_capacity.yaml --dry-run", "--slurm")),
        (("slurm", "submit"), ("swin-moe slurm submit configs/demo_cpu.yaml", "--elastic", "--array")),
        (("slurm", "resume"), ("swin-moe slurm resume runs/a --nodes 2",)),
    ],
)
def test_help_teaches(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...], examples: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main([*command, "--help"])
    out, err = capsys.readouterr()
    assert err == ""
    for example in examples:
        assert example in out


@pytest.mark.parametrize(
    "order",
    [
        ("check", "CONFIG", "--nproc", "2", "OVERRIDES"),
        ("check", "CONFIG", "OVERRIDES", "--nproc", "2"),
        ("check", "--nproc", "2", "CONFIG", "OVERRIDES"),
        ("check", "CONFIG", "parallel.ep_size=8", "--nproc=2", "OVERRIDES"),  # the last one wins
    ],
)
def test_overrides_stand_anywhere(
    capsys: pytest.CaptureFixture[str], shards: Path, order: tuple[str, ...]
) -> None:
    options = overrides(
        shards, "run", "parallel.ep_size=2", "parallel.zero_stage=2", "train.duration=3 epochs"
    )
    line: list[str] = []
    for part in order:
        line += options if part == "OVERRIDES" else [str(CONFIG) if part == "CONFIG" else part]
    assert main(line) == 0
    first, _, end = capsys.readouterr().out.partition("\nrun: run, task classification, seed 0\n")
    assert first == f"{CONFIG} is valid"
    assert "  length           48 steps = 3 epochs = 768 images\n" in end
    assert "  batch            16 images = 2 ranks x 1 micro-batch of 8\n" in end
    assert end.endswith(
        "  device           fp32, ep_size 2, ZeRO stage 2\n"
        "layout: 2 ranks on one node\n"
        "  experts          1 group of 2: [0-1], inside a node\n"
        "  all-to-all       within the node\n"
        "  expert gradients no reduction needed: each expert is on one rank\n"
        "  dense gradients  all 2 ranks, inside a node\n"
    )


def test_check_shows_the_layout_on_nodes(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    line = ["check", str(CONFIG), *overrides(shards, "run", "parallel.ep_size=2", "train.micro_batch_size=4")]
    assert main([*line, "--nproc", "4", "--ranks-per-node", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-6:] == [
        "layout: 4 ranks on 2 nodes of 1 to 3",
        "  experts          2 groups of 2: [0-1] [2-3], each over 1 or 2 nodes",
        "  all-to-all       inside and between nodes; 25% of the rows cross nodes under even load",
        "  expert gradients 2 groups of 2: [0 2] [1 3], each over 1 or 2 nodes",
        "  dense gradients  all 4 ranks, over 2 nodes",
        "  warning: 1 of 2 expert groups straddle nodes, such as [2-3], though 2 ranks fit into one: as many "
        "ranks on every node, a multiple of 2, would do",
    ]
    assert main([*line, "--ranks-per-node", "3"]) == 2
    assert "say --nproc N" in capsys.readouterr().err


def test_check_without_ranks(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    assert main(["check", str(CONFIG), *overrides(shards, "run")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{CONFIG} is valid\nrun: run, ")
    assert out.endswith("  device           fp32, ep_size 1, ZeRO stage 1\n")


@pytest.mark.parametrize(
    "line", [("check", str(CONFIG), "--ep", "2"), ("eval", "run", "--fast"), ("shards", "info", "a", "x=1")]
)
def test_unknown_flags(capsys: pytest.CaptureFixture[str], line: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        main(list(line))
    assert "unrecognized arguments: " in capsys.readouterr().err
