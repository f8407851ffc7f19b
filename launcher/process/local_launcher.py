"""N ranks on this machine, children of this process; the ranks run the very same command.

Not torch's elastic agent: that answers SIGTERM by ending its ranks, and returns the status of the rank that
happened to end first, while here a request to stop is passed on and waited for, and the status is that of the
rank that caused the end. The ranks meet at a store in this process, at a port that the system picks, so two
runs on one machine do not collide; it also carries the ranks' heartbeats (parallel/watchdog/watch.py), and
outlives every rank.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist

from launcher.exit_codes import ExitCode
from launcher.process.signals import STOP_SIGNALS, StopRequest
from launcher.rundir.postmortem import CRASHES, MEMORY_ADVICE, Ending, cause
from parallel.ranks.discover import is_one_task, is_shell_of_a_job, launcher_of
from parallel.ranks.identity import end_with_parent
from parallel.ranks.init import threads_per_rank
from parallel.ranks.variables import LaunchError, check_process, number
from parallel.watchdog.diagnosis import DIAGNOSIS
from parallel.watchdog.watch import NCCL, PREFIX
from parallel.watchdog.words import last_heartbeat

AGENT = "SWIN_MOE_AGENT"  # set for the ranks that this process started: its process id
POLL_S = 0.02
GONE_S = 5.0  # for killed ranks to be gone: one may have a lot of memory to give back
PATIENCE_S: dict[
    int, float
] = {  # for the other ranks to end by themselves after one that failed; then they are killed
    ExitCode.HANG: 2.0,
    ExitCode.STOPPED: 120.0,
    ExitCode.USER_ERROR: 30.0,
    ExitCode.SAVE_FAILED: 30.0,
}
DEFAULT_PATIENCE_S = 8.0


def run_local(nproc: int, arguments: list[str]) -> int:
    """Run `python -m launcher ARGUMENTS` as `nproc` ranks; the exit status of the one that caused the end."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = RankProcesses(dist.PrefixStore(PREFIX, store))
    with StopRequest(processes.pass_on, processes.end_at_once):
        signal.pthread_sigmask(
            signal.SIG_BLOCK, STOP_SIGNALS
        )  # inherited: a rank unblocks them once it listens
        for rank in range(nproc):
            environment = {**os.environ, **_rank_environment(nproc, rank, store.port)}
            command = [sys.executable, "-u", "-m", "launcher", *arguments]
            processes.ranks.append(subprocess.Popen(command, env=environment, start_new_session=True))
            if processes.request:  # which came before this rank was started
                processes.ranks[-1].send_signal(processes.request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return processes.wait()


def out_of_memory_kills() -> int:
    """Processes of this control group that the kernel killed for lack of memory; 0 if unknown."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0


@dataclass
class RankProcesses:
    """The processes of the ranks, and how they end.

    Args:
        store: for the heartbeats of the ranks and the diagnosis of their end.
        ranks: by number.
        ended: exit code by rank, in the order in which they ended.
        request: the signal that requested a stop, if one came.
        count_kills: how many processes the kernel killed until now for lack of memory.
    """

    store: dist.Store
    ranks: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ended: dict[int, int] = field(default_factory=dict)
    request: signal.Signals | None = None
    count_kills: Callable[[], int] = out_of_memory_kills

    def __post_init__(self) -> None:
        self.kills_before = self.count_kills()

    def wait(self) -> int:
        """Wait for all ranks; after a failure the rest have a while to end by themselves."""
        deadline_s: float | None = None
        killed: set[int] = set()
        while len(self.ended) < len(self.ranks):
            for rank, process in enumerate(self.ranks):
                if rank in self.ended or (code := process.poll()) is None:
                    continue
                self.ended[rank] = code
                if code and rank not in killed:
                    self._announce(rank, code)
                    patience_s = PATIENCE_S.get(self._meaning(code), DEFAULT_PATIENCE_S)
                    deadline_s = min(deadline_s or float("inf"), time.monotonic() + patience_s)
            if deadline_s and time.monotonic() > deadline_s:
                killed |= {rank for rank in range(len(self.ranks)) if rank not in self.ended}
                self._kill()
            time.sleep(POLL_S)
        return self._status({rank: code for rank, code in self.ended.items() if rank not in killed})

    def pass_on(self, number: signal.Signals) -> None:
        """Hand a request to stop to the ranks."""
        self.request = number
        sys.stderr.write(
            f"{number.name}: the run stops after this step and is saved; Ctrl-C or SIGTERM again ends it at "
            "once, unsaved\n"
        )
        for process in self.ranks:
            if process.poll() is None:
                process.send_signal(number)

    def end_at_once(self, number: signal.Signals) -> None:
        """The second request: no more waiting, but for the ranks to be gone."""
        self._kill()
        deadline_s = time.monotonic() + GONE_S
        while any(process.poll() is None for process in self.ranks) and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        os._exit(128 + number)

    def _kill(self) -> None:
        for process in self.ranks:
            if process.poll() is None:
                process.kill()

    def _announce(self, rank: int, code: int) -> None:
        """What a rank that a signal killed cannot say itself, said once, also to the other ranks."""
        if code > 0 or (self.request and -code in STOP_SIGNALS) or self.store.add("claims", 1) != 1:
            return
        reason = f"killed by {signal.Signals(-code).name}"
        if self._meaning(code) == ExitCode.OUT_OF_MEMORY:
            reason += f": the machine is out of memory; {MEMORY_ADVICE}"
        key = f"beat/{rank}"
        last = json.loads(self.store.get(key)) if self.store.check([key]) else None
        line = f"lost rank {rank}: {reason}{last_heartbeat(last)}"
        self.store.set(DIAGNOSIS, json.dumps({"code": ExitCode.LOST_RANK, "line": line}))
        sys.stderr.write(f"LostRankError: {line}\n")
        sys.stderr.flush()

    def _meaning(self, code: int) -> int:
        """A rank's status, where a signal ended it as one of our own."""
        if code >= 0:
            return code
        if self.request and -code in STOP_SIGNALS:
            return ExitCode.STOPPED  # before it listened: nothing was there to save
        if -code == signal.SIGABRT and self.store.check([NCCL]):
            return ExitCode.LOST_RANK  # by NCCL's watchdog: it lost another
        if -code in CRASHES:
            return ExitCode.BUG
        if -code == signal.SIGKILL and self.count_kills() > self.kills_before:
            return ExitCode.OUT_OF_MEMORY
        return ExitCode.LOST_RANK

    def _status(self, ended: dict[int, int]) -> int:
        """The status of the rank that caused the end."""
        ending = cause([Ending(code=self._meaning(code)) for code in ended.values()])
        return int(ending.code) if ending else ExitCode.FINISHED


def is_parent(nproc: int | None) -> bool:
    """Whether this process is to start ranks, rather than to be one.

    In a shell of a Slurm job of several tasks `--nproc 1` starts one, which then is nobody's task.

    Raises:
        LaunchError: ranks are asked for where another launcher has started them already, or a variable that
            they would inherit is garbled.
    """
    if AGENT in os.environ or nproc is None or (nproc == 1 and not is_shell_of_a_job()):
        return False
    if (launcher := launcher_of()) != "single" and not is_one_task():
        raise LaunchError(f"--nproc starts ranks by itself; leave it out under {launcher}")
    check_process(os.environ)
    return True


def is_rank() -> bool:
    """Whether `run_local` started this process."""
    return AGENT in os.environ


def _rank_environment(nproc: int, rank: int, port: int) -> dict[str, str]:
    """Who it is, where the others are, ranks x threads within the cores, and allocations that stay.

    Without the last two a step's memory goes back to the system after it.
    """
    defaults = {
        "OMP_NUM_THREADS": str(threads_per_rank(nproc)),
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**31),
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()} | {
        "RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there: no rank is to make one
        AGENT: str(os.getpid()),
    }


def die_with_agent() -> None:
    """In a rank: end when its parent does, even by SIGKILL, so that no rank is left behind."""
    if AGENT not in os.environ:
        return
    end_with_parent(number(os.environ, AGENT))
