"""run_on_ranks: a function on N gloo processes of this machine, which meet through a file and not a port.

The processes are forked from a server that has imported torch, DeepSpeed and this project once, so that a
call costs tenths of a second instead of several seconds a rank.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from parallel.ranks.init import join, leave, prepare_process
from parallel.ranks.rank import Ranks
from tests.accelerator import Surroundings
from tests.deadline import Deadline
from tests.pickling import dumps

# one thread a rank; gloo on the loopback interface, whatever the machine's name resolves to
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "GLOO_SOCKET_IFNAME": "lo",
    # the server imports the project of this checkout, whatever the environment has installed
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
    ),
}
PRELOAD = ["tests.ready"]
# the public name came with torch 2.14, where the private one warns
set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
STACK_S = 2.0  # for a hung rank to write where it hangs
LOOK_S = 0.5  # between looks at the deadline


class RankError(AssertionError):
    """A rank raised, died or hung; the message names it."""


def run_on_ranks(fn: Callable[..., Any], n: int, *args: Any, timeout_s: float = 120) -> list[Any]:
    """Call `fn(*args)` on each of `n` ranks that have joined one process group; the values in rank order.

    Args:
        fn: a function of a module, so that the ranks can import it.
        n: ranks.
        args: pickled, as the values that come back.
        timeout_s: for all ranks together once they are started; see Deadline.

    Raises:
        RankError: with the first failing rank's traceback, its exit code, or the stack of a rank that hung.
    """
    payload = dumps((fn, args))  # by value: torch's own pickler would share memory with a dead process
    with tempfile.TemporaryDirectory() as directory:
        ranks = _start(payload, n, Path(directory))
        try:
            return _collect(ranks, Path(directory), timeout_s)
        finally:
            for process, pipe in ranks:
                process.kill()
                process.join()
                process.close()
                pipe.close()


def _start(payload: bytes, n: int, directory: Path) -> list[tuple[BaseProcess, Connection]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with environment():
        forkserver.ensure_running()
    ranks = []
    for rank in range(n):
        ours, theirs = context.Pipe(duplex=False)
        given = (payload, rank, n, directory, theirs, Surroundings.of_this_test())
        process = context.Process(target=_main, args=given, daemon=True)
        process.start()
        theirs.close()
        ranks.append((process, ours))
    return ranks


@contextlib.contextmanager
def environment() -> Iterator[None]:
    """The server, and so every rank, imports torch and DeepSpeed under ENVIRONMENT; this process does not."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _main(
    payload: bytes, rank: int, n: int, directory: Path, pipe: Connection, surroundings: Surroundings
) -> None:
    """One rank."""
    os.environ.update(ENVIRONMENT)
    warnings.simplefilter("ignore", FutureWarning)  # torch's of DeepSpeed: hundreds, each with its line
    surroundings.enter()
    ranks = Ranks.that_meet_at(directory / "rendezvous", rank, n)
    with _stack_file(directory, rank).open("w") as stack:
        faulthandler.register(signal.SIGUSR2, stack)
        try:
            join(ranks, prepare_process(ranks))
            fn, args = pickle.loads(payload)
            answer = dumps((time.monotonic(), True, fn(*args)))
        except BaseException:
            answer = pickle.dumps((time.monotonic(), False, traceback.format_exc()))
        pipe.send_bytes(answer)
        leave()
        faulthandler.unregister(signal.SIGUSR2)


def _collect(ranks: list[tuple[BaseProcess, Connection]], directory: Path, timeout_s: float) -> list[Any]:
    """Answers as they come; the first failure ends the wait, for its peers only hang or fail after it."""
    deadline = Deadline(timeout_s, [process.pid or 0 for process, _ in ranks])
    answers: dict[int, Any] = {}
    while len(answers) < len(ranks):
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(ranks) if rank not in answers}
        while not (ready := connection.wait(list(waiting), timeout=LOOK_S)) and deadline.left_s() > 0:
            pass
        if not ready:
            hung = sorted(waiting.values())
            raise RankError(
                f"rank {', '.join(map(str, hung))} of {len(ranks)} hung: no answer in {timeout_s} s\n"
                + "\n".join(_stack(ranks[rank][0], directory, rank) for rank in hung)
            )
        failures: list[tuple[float, str]] = []
        for pipe in ready:
            rank = waiting[pipe]  # type: ignore[index]
            at_s, succeeded, answers[rank] = _answer(*ranks[rank])
            if not succeeded:
                failures.append((at_s, f"rank {rank} of {len(ranks)} {answers[rank]}"))
        if failures:  # under load several are ready at once, among them those that failed after the first
            raise RankError(min(failures)[1])
    for process, _ in ranks:
        process.join(max(0.0, deadline.left_s()))
    return [answers[rank] for rank in range(len(ranks))]


def _answer(process: BaseProcess, pipe: Connection) -> tuple[float, bool, Any]:
    """When a rank ended by the monotonic clock (0 if it died), whether it succeeded, its value or failure."""
    try:
        at_s, succeeded, value = pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join()
        return 0.0, False, f"died with exit code {process.exitcode}"
    return at_s, succeeded, value if succeeded else f"raised\n{value}"


def _stack_file(directory: Path, rank: int) -> Path:
    return directory / f"stack-{rank}"


def _stack(process: BaseProcess, directory: Path, rank: int) -> str:
    """Where a hung rank hangs, as its own fault handler tells it."""
    if process.pid is not None and process.is_alive() and _stack_file(directory, rank).exists():
        os.kill(process.pid, signal.SIGUSR2)
    give_up = time.monotonic() + STACK_S
    while time.monotonic() < give_up:
        if _stack_file(directory, rank).exists() and (text := _stack_file(directory, rank).read_text()):
            time.sleep(0.05)  # the rest of it
            text = _stack_file(directory, rank).read_text()
            return f"--- rank {rank}\n{text}"
        time.sleep(0.05)
    return f"--- rank {rank}: no stack"
