"""What `train` and `check` say of a run before its first step."""

import os
from pathlib import Path

from launcher.config.load import load_config
from launcher.console.counts import counted
from launcher.training.banner import banner, start_line
from parallel.checkpoint.latest import IntactCheckpoint
from swin_moe.backbone.model import build_model
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, commands, overrides
from tests.launcher.short_run import line


def test_the_figures_of_a_run(shards: Path) -> None:
    """256 images in batches of 16: 20 steps are 320 images, 1.25 epochs; 0.01 x 16 / 512 = 0.0003125."""
    config = load_config(CONFIG, overrides(shards, "run", "train.micro_batch_size=4", "parallel.ep_size=2"))
    parameters = dict(build_model(config.model).named_parameters())
    total = sum(each.numel() for each in parameters.values())
    experts = sum(each.numel() for name, each in parameters.items() if ".experts." in name)
    head, *lines = banner(config, 2, "cpu")
    assert head == "run: run, task classification, seed 0"
    assert lines[1:] == [
        f"  parameters       {total:,} in all, {total - experts * 6 // 8:,} active (used by one token)",
        f"  training data    256 images of 10 classes ({shards}/train)",
        f"  evaluation data  64 images of 10 classes ({shards}/val)",
        "  length           20 steps = 1.25 epochs = 320 images",
        "  batch            16 images = 2 ranks x 2 micro-batches of 4",
        "  optimizer        adamw, peak learning rate 0.0003125 (base_lr 0.01 x 16 / 512) after 1 "
        "warm-up step, then cosine",
        "  device           2 x cpu, fp32, ep_size 2, ZeRO stage 1",
    ]


def test_without_ranks_the_batch_is_not_divided(shards: Path) -> None:
    lines = banner(load_config(CONFIG, overrides(shards, "run")))
    assert lines[-3:][0] == "  batch            16 images, in micro-batches of 8"
    assert lines[-1] == "  device           fp32, ep_size 1, ZeRO stage 1"


def test_where_a_session_starts(tmp_path: Path) -> None:
    path = tmp_path / "step-00000150"
    path.mkdir()
    os.utime(path, (0, 0))
    saved = IntactCheckpoint(path=path, manifest={"step": 150, "world_size": 2}, notices=[])
    assert start_line(None, 557) == "no checkpoint yet: starting at step 0 of 557"
    text = start_line(saved, 557)
    assert text.startswith("resuming from step-00000150 (written 19")
    assert text.endswith(" by 2 ranks): 407 of 557 steps to go")
    assert start_line(saved, 150).startswith("all 150 steps are done in step-00000150 (written 19")


def test_counts() -> None:
    assert [counted(n, "step") for n in (0, 1, 1234)] == ["0 steps", "1 step", "1,234 steps"]


def test_a_run_says_where_it_starts(shards: Path, tmp_path: Path) -> None:
    """New, continued for longer, and finished: of the last, no summary is printed as if it had trained."""
    run = tmp_path / "run"
    short = [*line(shards, run, ep_size=1), "train.duration=2 steps", "optim.schedule=linear"]
    longer = [*short, "train.duration=3 steps", "--allow-change"]
    new, more, finished = run_on_ranks(commands, 1, [short, longer, longer])[0]
    assert [each.code for each in (new, more, finished)] == [0, 0, 0], new.err + more.err + finished.err
    assert "\nno checkpoint yet: starting at step 0 of 2\n" in new.out
    assert "\nresuming from step-00000002 (written 20" in more.out
    assert " by 1 rank): 1 of 3 steps to go\n" in more.out
    assert finished.out.endswith("\nalready finished (step 3 of 3): nothing to do\n")
    for outcome, wanted in ((new, True), (more, True), (finished, False)):
        assert "  length           " in outcome.out
        assert ("run directory" in outcome.out) == wanted
