"""The first minutes on a GPU: what works, what is right, and where the time goes.

    python benchmarks/gpu_run.py --budget 480 --out gpu_run                # on a GPU
    python benchmarks/gpu_run.py --budget 60 --out gpu_run --device cpu    # the rehearsal, on two cores
    python benchmarks/gpu_run.py --page docs/gpu.md --out gpu_run          # write the page again

Each check is a process of its own with a deadline of its own, so that a crash, an illegal access or a hang
costs that check alone. Checks that compare numbers run side by side; those that measure time run afterwards,
one at a time. A row is appended to OUT/results.jsonl as soon as it is known, what a check prints is in
OUT/NAME.log. The exit status is 1 if a check failed, and 0 if every one that started found what it must.
A check that the budget has no time for is reported as not reached.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

PATIENCE = 4  # times the deadlines of a GPU, in a rehearsal on a CPU that others may use too
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class CheckPart:
    """A check: `function` of gpu_checks.`module`, at most `seconds` long; `timed` ones run alone."""

    module: str
    function: str
    seconds: int
    timed: bool = False

    @property
    def name(self) -> str:
        """As in --only and in the results."""
        return f"{self.module.removeprefix('gpu_checks.')}.{self.function}"

    def is_called(self, name: str) -> bool:
        """Whether `name` means this check, or the module that it is in."""
        return name in (self.name, self.name.split(".")[0])


PARTS: tuple[
    CheckPart, ...
] = (  # in the order of what blocks what; if time is short, the end is what is dropped
    CheckPart("gpu_checks.start", "imports", 180),
    CheckPart("gpu_checks.start", "engine", 90),
    CheckPart("gpu_checks.start", "preflight", 120),
    CheckPart("gpu_checks.attention", "kernels", 120),
    CheckPart("gpu_checks.draws", "keyed", 90),
    CheckPart("gpu_checks.families", "against_cpu", 180),
    CheckPart("gpu_checks.experts", "products", 90),
    CheckPart("gpu_checks.engines", "stages", 240),
    CheckPart("gpu_checks.host_waits", "host_reads", 120),
    CheckPart("gpu_checks.program", "train_stop_resume", 240),
    CheckPart("gpu_checks.speed", "models", 120, timed=True),
    CheckPart("gpu_checks.speed", "layers", 60, timed=True),
    CheckPart("gpu_checks.speed", "profiles", 60, timed=True),
    CheckPart("gpu_checks.speed", "compiled", 120, timed=True),
    CheckPart("gpu_checks.speed", "pieces", 60, timed=True),
    CheckPart("gpu_checks.memory", "staging", 60, timed=True),
    CheckPart("gpu_checks.memory", "plan", 90, timed=True),
)


@dataclass
class RunningCheck:
    """A check in its process."""

    part: CheckPart
    process: subprocess.Popen[bytes]
    deadline: float
    folder: Path  # of its own files
    began: float = field(default_factory=time.monotonic)

    def stop(self) -> None:
        """End the process and everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Results:
    """The rows of OUT/results.jsonl, which every check appends to."""

    def __init__(self, out: Path) -> None:
        self.file = out / "results.jsonl"

    def add(self, check: str, row: dict[str, Any]) -> None:
        """Append one row; one write call, since several checks do so at once."""
        line = json.dumps({"check": check, **row}, default=str) + "\n"
        with open(self.file, "ab", buffering=0) as stream:
            stream.write(line.encode())

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far; a line that a killed process left unfinished is no row."""
        rows = []
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows


def run_check(part: CheckPart, args: argparse.Namespace) -> int:
    """In the process of a check: run it, and append its rows."""
    import torch
    from gpu_checks.place import CheckContext

    results = Results(args.out)
    began = time.monotonic()
    ending: dict[str, Any] = {"status": "done"}
    folder = scratch(part, args)
    folder.mkdir(parents=True, exist_ok=True)
    place = CheckContext(torch.device(args.device), folder, rehearsal=args.device == "cpu")
    try:
        for row in getattr(import_module(part.module), part.function)(place):
            results.add(part.name, row)
            print(json.dumps(row, default=str), flush=True)
    except Exception as error:
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        ending = {
            "status": "failed",
            "error": f"{type(error).__name__}: {error}"[:600],
            "at": f"{Path(where.filename).name}:{where.lineno}",
        }
    results.add(part.name, {**ending, "seconds": round(time.monotonic() - began, 1)})
    return ending["status"] != "done"


def start(part: CheckPart, args: argparse.Namespace, seconds: float) -> RunningCheck:
    """A check in a process of its own, in a session of its own."""
    command = [sys.executable, str(Path(sys.argv[0]).resolve()), "--check", part.name]
    command += ["--device", args.device, "--out", str(args.out)]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    with open(args.out / f"{part.name}.log", "wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    own = part.seconds * (1 if args.device == "cuda" else PATIENCE)
    return RunningCheck(part, process, time.monotonic() + min(own, seconds), scratch(part, args))


def scratch(part: CheckPart, args: argparse.Namespace) -> Path:
    """The folder for what a check writes; its parent removes it, also where the check was killed."""
    return Path(args.out) / f"{part.name}.scratch"


def run_all(parts: list[CheckPart], args: argparse.Namespace, results: Results) -> None:
    """Every part while the budget lasts: those that are not timed `args.jobs` at a time, then the others."""
    end = time.monotonic() + args.budget
    waiting = sorted(parts, key=lambda part: part.timed)
    running: list[RunningCheck] = []
    try:
        while waiting or running:
            running = [check for check in running if not finished(check, results)]
            while waiting and can_start(waiting[0], running, args.jobs):
                part = waiting.pop(0)
                if time.monotonic() >= end:
                    results.add(part.name, {"status": "not reached"})
                    continue
                running.append(start(part, args, end - time.monotonic()))
            time.sleep(0.1)
    finally:  # also when somebody interrupts the whole
        for check in running:
            check.stop()


def can_start(part: CheckPart, running: list[RunningCheck], jobs: int) -> bool:
    """A timed part only on an idle machine, any other beside fewer than `jobs`."""
    return not running if part.timed else len(running) < jobs


def finished(check: RunningCheck, results: Results) -> bool:
    """Whether it has ended by itself or at its deadline; an end without a message is reported here."""
    seconds = round(time.monotonic() - check.began, 1)
    status = check.process.poll()
    if status is None and time.monotonic() < check.deadline:
        return False
    check.stop()  # what it started, too
    if status is None:
        results.add(check.part.name, {"status": "deadline", "seconds": seconds})
    elif status not in (0, 1):
        results.add(
            check.part.name, {"status": "failed", "error": f"exit status {status}", "seconds": seconds}
        )
    print(f"{seconds:6.1f} s  {check.part.name}: {ending(check.part.name, results)}", flush=True)
    return True


def ending(name: str, results: Results) -> str:
    """One line on a check: how it ended, and the rows that are wrong."""
    rows = [row for row in results.rows() if row["check"] == name]
    wrong = [row["what"] for row in rows if row.get("ok") is False]
    last = next((row for row in reversed(rows) if "status" in row), {"status": "no word"})
    words = [last["status"], f"{sum('what' in row for row in rows)} rows"]
    words += [last["error"]] if "error" in last else []
    words += [f"{len(wrong)} WRONG: {'; '.join(wrong[:4])}"] if wrong else []
    return ", ".join(words)


def failures(results: Results) -> list[str]:
    """The checks that failed, outlasted their deadline or found something wrong."""
    bad = [
        row for row in results.rows() if row.get("status") in ("failed", "deadline") or row.get("ok") is False
    ]
    return sorted({row["check"] for row in bad})


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="run the checks, for at most this long"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.jsonl and the logs")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="these alone: module or module.function")
    parser.add_argument("--jobs", type=int, default=4, help="checks without times that run side by side")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the results between its two marks")
    parser.add_argument("--check", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.budget is None and args.page is None and args.check is None:
        parser.error("say --budget SECONDS to run the checks, or --page FILE to write the page")
    unknown = {name for name in args.only or [] if not any(part.is_called(name) for part in PARTS)}
    if unknown:
        known = ", ".join(part.name for part in PARTS)
        parser.error(f"--only: no check is called {', '.join(sorted(unknown))}; there are {known}")
    args.out = args.out.resolve()
    if not args.check and (mistake := mistake_in(args)):
        parser.error(mistake)
    return args


def mistake_in(args: argparse.Namespace) -> str:
    """What would fail or be lost later; "" for nothing. It makes the folder OUT."""
    if args.budget is not None and args.budget < 0:
        return f"--budget ({args.budget:g}) must be at least 0 seconds"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"--out: {error}"
    if args.page is not None:
        from gpu_checks.page import page_problem  # imports torch: seconds, which the checks above do not need

        if problem := page_problem(args.page):
            return f"--page: {problem}"
    if args.budget is None and not Results(args.out).rows():
        return (
            f"--page: {args.out} holds no results, and the page keeps those that it has; say --budget SECONDS"
        )
    if args.budget is not None and args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "--device cuda: torch finds no GPU here; --device cpu is the rehearsal"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Run the checks, or one of them, or write the page."""
    args = parse(argv)
    results = Results(args.out)
    if args.check:
        return run_check(next(part for part in PARTS if part.name == args.check), args)
    if args.budget is not None:
        results.file.unlink(missing_ok=True)
        parts = [part for part in PARTS if not args.only or any(map(part.is_called, args.only))]
        run_all(parts, args, results)
    if args.page is not None:
        from gpu_checks.page import write_page

        write_page(args.page, results.rows())
    bad = failures(results)
    print(f"{len(bad)} checks failed: {', '.join(bad)}" if bad else "no check failed")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
