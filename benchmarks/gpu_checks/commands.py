"""Commands of the launcher as a user runs them, from the checkout, without an installation."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpu_checks.place import CheckContext

ROOT = Path(__file__).resolve().parent.parent.parent
SMI_S = 20.0
ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
NEWS = 300  # characters of a row's text


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A command that has ended."""

    status: int | None  # None: it was killed at its time limit
    out: str
    err: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line of what it said, of an error where it failed."""
        lines = (self.out if self.status == 0 else self.err or self.out).strip().splitlines()
        return lines[-1][-NEWS:] if lines else ""

    @property
    def said(self) -> dict[str, object]:
        """The numbers of a row."""
        return {"status": self.status, "last_line": self.last_line, "seconds": round(self.seconds, 1)}


@dataclass(frozen=True, kw_only=True)
class Running:
    """A command that runs; its output goes to files, so that no pipe is ever full."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    began: float

    def wait(self, seconds: float) -> Ended:
        """Wait until it has ended, and end it after `seconds`."""
        status: int | None
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = None
        out, err = (path.read_text(errors="replace") for path in (self.out, self.err))
        return Ended(status=status, out=out, err=err, seconds=time.monotonic() - self.began)


def environment(place: CheckContext) -> dict[str, str]:
    """Of a process that computes on the device of `place`; a rehearsal sees no GPU.

    Several checks run at the same time, so that none may take all cores.
    """
    benchmarks = str(ROOT / "benchmarks")
    paths = [str(ROOT), benchmarks, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"OMP_NUM_THREADS": "4", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return env if place.on_gpu else {**env, **ON_CPU}


def begin(place: CheckContext, name: str, arguments: Iterable[object], **variables: str) -> Running:
    """Start `python -m ARGUMENTS`; `name` is of the files of its output in the folder of `place`."""
    out, err = place.folder / f"{name}.out", place.folder / f"{name}.err"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=ROOT,
            env={**environment(place), **variables},
            stdin=subprocess.DEVNULL,
            stdout=out_file,
            stderr=err_file,
        )
    return Running(process=process, out=out, err=err, began=time.monotonic())


def launch(place: CheckContext, name: str, *arguments: object, seconds: float = 120) -> Ended:
    """Run a command of `swin-moe` to its end."""
    return begin(place, name, ["launcher", *arguments]).wait(seconds)


def compute_apps() -> list[tuple[str, int, str]]:
    """What nvidia-smi says: (uuid of the GPU, process id, MiB used) of every context on every GPU."""
    query = ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=SMI_S, check=True)
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 2]
    return [(uuid, int(pid), mib) for uuid, pid, mib in rows if pid.strip().isdecimal()]


def family(pid: int) -> list[int]:
    """A process and all below it, in Linux's own words."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        children = []
    return [pid, *(one for child in children for one in family(child))]
