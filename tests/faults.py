"""Faults on purpose: a command on forked ranks, one or more of which something befalls at a stated place.

    ended = run(2, line, Fault("SIGKILL", rank=1, at="step", step=7))
    assert [rank.code for rank in ended] == [80, -9]

Every rank is a process of its own with its own exit status and output, joined through a file; nothing is
patched but who it is and the fault itself. No call outlasts its deadline: what is alive then has `code` None.
"""

import math
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from parallel.ranks.rank import Ranks
from tests.accelerator import Surroundings
from tests.deadline import Deadline
from tests.distributed import ENVIRONMENT, PRELOAD, environment

Kind = Literal[
    "SIGKILL",
    "SIGTERM",
    "SIGUSR1",
    "SIGSTOP",
    "SIGINT",
    "memory",  # RLIMIT_AS: the next large allocation fails
    "disk",  # RLIMIT_FSIZE: no file grows beyond FULL_BYTES
    "nan_loss",  # this micro-batch's loss, from this step on
    "nan_gradient",  # of one parameter, from this step on
    "sleep",  # for a minute
    "pause",  # for seconds
    "slow_data",  # the next batch comes after ten seconds
    "slow_record",  # the end of the session takes seconds to be written down
    "bug",  # an exception that nobody expects
]
# below the size of a checkpoint; above that of the file where the ranks meet, without which torch would spin
FULL_BYTES = 2**16
SLOW_DATA_S = 10.0
SLOW_RECORD_S = 3.0
PAUSE_S = 2.0
Place = Literal["step", "evaluate", "save", "commit"]  # events of the trainer; `commit` is on rank 0 alone


@dataclass(frozen=True)
class Fault:
    """What happens to one rank (None: to all), and when: before `at`, after `step` steps."""

    kind: Kind
    rank: int | None = 0
    at: Place = "step"
    step: int = 3

    def hook(self, event: str, trainer: Any) -> None:
        """Strike before an event of the trainer."""
        if (event, trainer.step) == (self.at, self.step):
            self.strike(trainer)

    def patch_commit(self) -> Any:
        """A patch that strikes before a checkpoint is committed."""
        from parallel.checkpoint import write

        original = write.commit

        def struck(*arguments: Any) -> Any:
            if arguments[2]["step"] == self.step:
                self.strike(None)
            return original(*arguments)

        return mock.patch.object(write, "commit", struck)

    def strike(self, trainer: Any) -> None:
        """Let it happen in this process."""
        if self.kind.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[self.kind])
        elif self.kind == "memory":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            bytearray(2**28)
        elif self.kind == "disk":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))
        elif self.kind == "nan_loss":
            trainer.task = ScaledLoss(trainer.task, math.nan)
        elif self.kind == "nan_gradient":
            next(trainer.task.model.parameters()).register_hook(lambda gradient: gradient * math.nan)
        elif self.kind == "slow_data":
            trainer.batches = Late(trainer.batches)
        elif self.kind == "slow_record":
            import launcher.rundir.sessions

            append = launcher.rundir.sessions.append
            launcher.rundir.sessions.append = lambda *a: (time.sleep(SLOW_RECORD_S), append(*a))  # type: ignore
        elif self.kind == "sleep":
            time.sleep(60)
        elif self.kind == "pause":
            time.sleep(PAUSE_S)
        else:
            raise LookupError("a bug on purpose")


class Wrapped:
    """Something with the attributes of another object."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class ScaledLoss(Wrapped):
    """A task whose loss is multiplied by a factor."""

    def __init__(self, inner: Any, factor: float) -> None:
        super().__init__(inner)
        self.factor = factor

    def step(self, *arguments: Any) -> Any:
        output = self.inner.step(*arguments)
        return output._replace(loss=output.loss * self.factor)


class Late(Wrapped):
    """Batches, the first of which comes late."""

    delay_s = SLOW_DATA_S

    def __next__(self) -> Any:
        time.sleep(self.delay_s)
        self.delay_s = 0.0
        return next(self.inner)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one rank ended: its exit status, negative for a signal, None where it outlived the deadline."""

    code: int | None
    out: str
    err: str
    after_s: float  # since all were started


def run(
    n: int,
    line: list[str],
    *faults: Fault,
    stays: tuple[int, ...] = (),
    timeout_s: float = 120,
    meddle: Callable[[list[int]], None] | None = None,
) -> list[Ended]:
    """Run one command of the launcher on `n` ranks and wait for all to end.

    Args:
        n: ranks.
        line: of `swin-moe`.
        faults: that befall them.
        stays: ranks that are not waited for: stopped ones.
        timeout_s: once all are started; see Deadline.
        meddle: called with the process ids once the ranks are started.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with environment():
        forkserver.ensure_running()
    with tempfile.TemporaryDirectory() as directory:
        ranks = list[BaseProcess]()
        for rank in range(n):
            mine = [fault for fault in faults if fault.rank in (None, rank)]
            given = (line, rank, n, Path(directory), mine, Surroundings.of_this_test())
            process = context.Process(target=_main, args=given, daemon=True)
            process.start()
            ranks.append(process)
        try:
            if meddle:
                meddle([process.pid or 0 for process in ranks])
            times = _wait(ranks, stays, timeout_s)
            codes = [process.exitcode for process in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.join()
                process.close()
        texts = [[_text(Path(directory, f"{name}-{rank}")) for name in ("out", "err")] for rank in range(n)]
    return [
        Ended(code=code, out=out, err=err, after_s=after_s)
        for code, (out, err), after_s in zip(codes, texts, times, strict=True)
    ]


def _wait(ranks: list[BaseProcess], stays: tuple[int, ...], timeout_s: float) -> list[float]:
    """Seconds after which each rank had ended."""
    times, start_s = [math.inf] * len(ranks), time.monotonic()
    deadline = Deadline(timeout_s, [process.pid or 0 for process in ranks])
    while deadline.left_s() > 0:
        for rank, process in enumerate(ranks):
            if process.exitcode is not None:
                times[rank] = min(times[rank], time.monotonic() - start_s)
        if all(math.isfinite(times[rank]) for rank in range(len(ranks)) if rank not in stays):
            break
        time.sleep(0.02)
    return times


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _main(
    line: list[str], rank: int, n: int, directory: Path, faults: list[Fault], surroundings: Surroundings
) -> None:
    """One rank."""
    os.environ.update(ENVIRONMENT)
    surroundings.enter()
    os.environ["TMPDIR"] = str(directory)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(directory / f"{name}-{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    from launcher.cli import program
    from launcher.process.run_rank import Runtime

    who = Ranks.that_meet_at(directory / "rendezvous", rank, n)
    warnings.simplefilter("ignore")
    with ExitStack() as patches:
        for fault in faults:
            if fault.at == "commit":
                patches.enter_context(fault.patch_commit())
        hooks = [fault.hook for fault in faults if fault.at != "commit"]
        runtime = Runtime(
            discover=lambda: who, hook=lambda event, trainer: [one(event, trainer) for one in hooks].clear()
        )
        code = program.main(line, runtime)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stale_lock(cache: Path, name: str) -> Path:
    """The lock that a killed build of an extension leaves in torch's cache."""
    lock = cache / name / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    return lock


def one_line(ended: list[Ended], kind: str) -> str:
    """The line of any rank that starts with a kind of error; there must be exactly one, and no traceback."""
    lines = [text for rank in ended for text in rank.err.splitlines()]
    assert not [text for text in lines if "Traceback" in text], "\n".join(lines)
    found = [text for text in lines if text.startswith(f"{kind}: ")]
    assert len(found) == 1, "\n".join(lines)
    return found[0]


def end(pids: list[int]) -> None:
    """SIGKILL, whether or not they still are there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
