"""Commands of the launcher on ranks that `run_on_ranks` forks: a run costs tenths of a second, not a start.

The ranks have met already, so the commands get a `Runtime` that neither joins nor leaves; all below it is
what `swin-moe` runs. What needs processes of its own (agent, signals, exit) calls `start`.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from parallel.ranks.rank import Ranks
from tests.distributed import run_on_ranks, set_timeout

CONFIG = Path(__file__).parents[2] / "configs" / "debug.yaml"
STEPS_AN_EPOCH = 16  # 256 images, 16 a step
TINY = (  # milliseconds a step; every source of randomness on
    "model.image_size=16",
    "model.window_size=2",
    "model.drop_path_rate=0.2",
    "model.moe.gate_noise=1.0",
    "model.moe.expert_dropout=0.1",
    "data.augment={}",  # RandAugment, erasing, mixup and cutmix
    "train.global_batch_size=16",
    "train.micro_batch_size=8",
    "train.eval_batch_size=32",
)
# what must not depend on how often a run was interrupted
EXACT = ("step", "loss", "aux_loss", "lr", "grad_norm", "dropped_fraction")
EXACT_EVAL = ("step", "eval_top1", "eval_loss", "eval_images", "eval_dropped_fraction", "eval_expert_load")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command left behind on one rank."""

    code: int
    out: str
    err: str


def overrides(shards: Path, run_dir: Path | str, *more: str) -> list[str]:
    """The options of a tiny run on the synthetic shards."""
    return [*TINY, f"data.train={shards}/train", f"data.val={shards}/val", f"run_dir={run_dir}", *more]


def command(
    *arguments: str, kill: tuple[str, int] | None = None, hook: Callable[[str, Any], None] | None = None
) -> Outcome:
    """Run one command on this rank.

    Args:
        arguments: of `swin-moe`.
        kill: a place (an event of the trainer, or `commit`) and a step, at which SIGKILL ends this process.
        hook: of the trainer.
    """
    from launcher.cli import program
    from launcher.process.run_rank import Runtime, no_hook

    world_size, rank = dist.get_world_size(), dist.get_rank()
    ranks = Ranks(rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size)
    hooks = [hook or no_hook, *([_deadly(*kill)] if kill and kill[0] != "commit" else [])]
    runtime = Runtime(
        discover=lambda: ranks,
        join=_joined,
        leave=lambda: None,
        abandon=_reraise,
        hook=lambda event, trainer: [one(event, trainer) for one in hooks].clear(),
    )
    with (
        _deadly_commit(kill[1]) if kill and kill[0] == "commit" else contextlib.nullcontext(),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = program.main(list(arguments), runtime)
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue())


def _joined(ranks: Ranks, device: torch.device, timeout: timedelta) -> None:
    """The ranks have met; what is left of `join` is the time-out."""
    set_timeout(timeout)


def _reraise(code: int, error: BaseException) -> int:
    """Instead of the end of the process: the test wants to see the error."""
    raise error


def _deadly(place: str, step: int) -> Callable[[str, Any], None]:
    """A hook that kills this process before an event of the trainer, after `step` steps."""

    def hook(event: str, trainer: Any) -> None:
        if (event, trainer.step) == (place, step):
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def _deadly_commit(step: int) -> Any:
    """A patch that kills this process before the checkpoint of a step is committed."""
    from parallel.checkpoint import write

    original = write.commit

    def deadly(*arguments: Any) -> Any:
        if arguments[2]["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    return mock.patch.object(write, "commit", deadly)


def run_alone(*line: str) -> Outcome:
    """Run one command on one rank, and see that it succeeds."""
    (outcome,) = run_on_ranks(command, 1, *line)
    assert outcome.code == 0, outcome.err
    return outcome


def commands(lines: Sequence[Sequence[str]]) -> list[Outcome]:
    """Several commands one after the other on this rank."""
    return [command(*line) for line in lines]


def records(run_dir: Path) -> list[dict[str, Any]]:
    """Every record of a run."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run's steps."""
    return [record for record in records(run_dir) if "loss" in record]


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run's evaluations."""
    return [record for record in records(run_dir) if "eval_loss" in record]


def only(record: dict[str, Any], names: Sequence[str]) -> list[Any]:
    """The named values of a record."""
    return [record[name] for name in names]


def start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `swin-moe` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", *arguments],
        cwd=cwd,
        # what SIGKILL leaves of temporary directories lies with the test's own files
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(cwd), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def descendants(pid: int) -> list[int]:
    """The processes below one, in Linux's own words."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [one for child in children for one in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
