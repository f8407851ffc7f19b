"""How long commands take that do little: python benchmarks/startup.py [COMMIT] [--rounds 5] [--json FILE]

Each command is a process of its own, `python -m launcher COMMAND`, in a directory with small shards, a run
with a checkpoint and a study. With COMMIT the same commands run in a checkout of it too, and the two take
turns. Seconds are wall-clock and process CPU (user + sys), the fastest of the rounds; a busy neighbour hardly
moves the CPU seconds. `modules` are those that Python imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from against import ROOT, checkout

COMMANDS = (
    "",
    "--help",
    "--version",
    "modles",
    "train --help",
    "shards pack --help",
    "slurm submit --help",
    "models --names",
    "options lr",
    "config swinv2_tiny_patch4_window8_256",
    "check demo_cpu optim.base_lr=-1",
    "train demo_cpu optim.base_lr=-1",
    "shards info shards/val",
    "shards verify shards/val",
    "checkpoint ls run",
    "slurm list .",
    "study status study",
)
PACK = "shards pack --source synthetic --synthetic-train 64 --synthetic-val 64 --out shards"
HEAVY = ("torch", "deepspeed", "pandas", "matplotlib")


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the start of a command took: the fastest of the rounds."""

    wall_s: float
    cpu_s: float
    modules: int
    heavy: tuple[str, ...]  # of HEAVY, those that were imported

    def __str__(self) -> str:
        return f"{self.wall_s:6.2f} s {self.cpu_s:6.2f} s {self.modules:6} {'torch' if self.heavy else '':5}"


def main() -> None:
    """Print one row a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", nargs="?", help="of this repository, before")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values there")
    args = parser.parse_args()
    with ExitStack() as stack:
        sides = {"before": stack.enter_context(checkout(args.commit))} if args.commit else {}
        sides["now"] = ROOT
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(place)
        print(
            f"{'swin-moe ...':40}" + "".join(f"  {side + ': wall':>13} {'CPU':>8} modules" for side in sides)
        )
        rows = {command: measured(sides, command, place, args.rounds) for command in COMMANDS}
    if args.json:
        found = {name: {side: asdict(start) for side, start in row.items()} for name, row in rows.items()}
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def prepare(place: Path) -> None:
    """Write shards, a run with a checkpoint, and a study."""
    from parallel.checkpoint.write import write_tensors
    from tests.launcher.stored_runs import record, tensors
    from tests.launcher.study.study_runs import write_troubled

    subprocess.run(line(*PACK.split()), cwd=place, env=environment(ROOT), check=True, capture_output=True)
    write_tensors(place / "run" / "checkpoints", 10, tensors(), record(320))
    write_troubled(place / "study")


def measured(sides: Mapping[str, Path], command: str, place: Path, rounds: int) -> dict[str, Start]:
    """The starts of a command by side, which are printed; the first round warms up."""
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, root in sorted(sides.items(), reverse=bool(number % 2)):
            seconds = timed(command, root, place)
            if number:
                taken[side].append(seconds)
    starts = {}
    for side, rounds_s in taken.items():
        walls, cpus = zip(*rounds_s, strict=True)
        names = imported(command, sides[side], place)
        heavy = tuple(name for name in HEAVY if name in names)
        starts[side] = Start(wall_s=min(walls), cpu_s=min(cpus), modules=len(names), heavy=heavy)
    print(f"{command or '(nothing)':40}  {'  '.join(map(str, starts.values()))}", flush=True)
    return starts


def timed(command: str, root: Path, place: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a command, of the processes that it starts too."""
    began_s = time.perf_counter()
    process = subprocess.Popen(
        line(*command.split()),
        cwd=place,
        env=environment(root),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # it is waited for already
    return time.perf_counter() - began_s, usage.ru_utime + usage.ru_stime


def imported(command: str, root: Path, place: Path) -> set[str]:
    """The modules that a command imports, in Python's own words."""
    line_ = [sys.executable, "-X", "importtime", *line(*command.split())[1:]]
    done = subprocess.run(line_, cwd=place, env=environment(root), capture_output=True, text=True)
    rows = [row for row in done.stderr.splitlines() if row.startswith("import time:")]
    return {row.rpartition("|")[2].strip() for row in rows[1:]}


def line(*arguments: str) -> list[str]:
    """The command line of a command."""
    return [sys.executable, "-m", "launcher", *arguments]


def environment(root: Path) -> dict[str, str]:
    """The environment in which the packages of a checkout are imported."""
    return os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


if __name__ == "__main__":
    main()
