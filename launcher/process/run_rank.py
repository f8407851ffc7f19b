"""One rank's life: join the others, work, and leave so that everyone knows why."""

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from data_shards.errors import DataError
from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.errors import (
    BadDataError,
    CrashLoopError,
    DivergedError,
    FinalSaveError,
    LostRankError,
    Stopped,
)
from launcher.exit_codes import ExitCode
from launcher.process import local_launcher as local
from launcher.process.classify_exit import as_run_error, in_one_line
from launcher.process.signals import StopRequest
from launcher.rundir.crash_report import leave_words
from launcher.rundir.heartbeat import Heartbeat, interval_s
from launcher.rundir.paths import RunFiles
from launcher.rundir.sessions import Sessions
from parallel.checkpoint.commit import CheckpointError
from parallel.ranks import gpu
from parallel.ranks.discover import Ranks, discover, join, leave, prepare_process
from parallel.ranks.mesh import LayoutError
from parallel.watchdog.watch import PREFIX, SLOW, Codes, Watch, connect
from swin_moe.config import ModelError

USER_ERRORS = (ConfigError, DataError, CheckpointError, LayoutError, ModelError)
SHARED = (Stopped, BadDataError, DivergedError, FinalSaveError, CrashLoopError)  # raised on all ranks alike


@dataclass(kw_only=True)
class Guard:
    """What stands beside a rank while it works."""

    stop: StopRequest
    watch: Watch
    run: RunFiles | None = None  # of a training run, once its session has begun
    sessions: Sessions | None = None  # of a training run, on rank 0
    heartbeat: Heartbeat | None = None  # likewise

    def note(self, **figures: float) -> None:
        """Figures for progress.json."""
        if self.heartbeat is not None:
            self.heartbeat.note(**figures)


Work = Callable[[Ranks, torch.device, Guard], None]


def as_rank(config: RunConfig, work: Work) -> int:
    """Join the other ranks, work, and leave them; returns the exit status, or ends the process.

    An error that all ranks share is said once, by rank 0. One that this rank has alone ends the process at
    once, for the others wait in a collective that no good-bye would reach.
    """
    local.die_with_agent()
    warnings.filterwarnings("ignore", module=r"torch\.distributed")  # of calls that DeepSpeed makes
    with StopRequest() as stop:
        ranks = discover()
        device = prepare_process(ranks)
        if device.type == "cuda":
            gpu.dump_collectives_to(config.run_dir, os.environ)
        try:
            join(ranks, device, longest_wait(config))
        except dist.DistError as error:
            complain(
                LostRankError(f"rank {ranks.rank} of {ranks.world_size} did not meet the others: {error}")
            )
            return ExitCode.LOST_RANK
        guard = Guard(stop=stop, watch=open_watch(ranks, config.parallel.collective_timeout_s))
        guard.watch.at_end = lambda code, line: _record_alone(guard, code, line)
        try:
            work(ranks, device, guard)
        except USER_ERRORS as error:
            return _leave_with(error, ExitCode.USER_ERROR, guard)
        except SHARED as error:
            return _leave_with(error, error.code, guard)
        except BaseException as error:
            return _end(error, config, guard)
        guard.watch.close()
        _record(guard, ExitCode.FINISHED, "finished")
    leave()
    return ExitCode.FINISHED


def longest_wait(config: RunConfig) -> timedelta:
    """The process groups' own time-out: behind whatever the watch may allow a phase."""
    timeout_s = config.parallel.collective_timeout_s
    return timedelta(seconds=timeout_s + max(SLOW * timeout_s, config.data.retry_s))


def open_watch(ranks: Ranks, timeout_s: float) -> Watch:
    """The watch over this rank, through the store of whoever started it, or of the process group."""
    codes = Codes(hang=ExitCode.HANG, lost=ExitCode.LOST_RANK)
    if local.is_rank():
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store: dist.Store = dist.PrefixStore(PREFIX, dist.TCPStore(host, port, is_master=False))
    else:
        store = connect(dist.distributed_c10d._get_default_store())
    return Watch(
        store,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout_s=timeout_s,
        codes=codes,
        hosts_store=ranks.rank == 0 and not local.is_rank(),
        listen_s=interval_s(timeout_s) if ranks.rank == 0 else None,
        nccl=dist.get_backend() == "nccl",
    )


def complain(error: BaseException) -> None:
    """Say what happened in one line and without a traceback."""
    sys.stderr.write(f"{type(error).__name__}: {error}\n")  # one write: the ranks share the terminal
    sys.stderr.flush()


def abandon(code: int, error: BaseException) -> int:
    """End this process without a good-bye to the others."""
    os._exit(code)


def _leave_with(error: BaseException, code: ExitCode, guard: Guard) -> int:
    """All ranks end with the same error: rank 0 says it, and writes it down before any of them is gone."""
    guard.watch.close()
    _record(guard, code, f"{type(error).__name__}: {error}")
    if guard.watch.rank == 0:
        complain(error)
    guard.watch.go_after_first()
    leave()
    return code


def _end(error: BaseException, config: RunConfig, guard: Guard) -> int:
    """This rank ends alone, and leaves its last words for the others."""
    found = as_run_error(error, guard.watch, config.train.micro_batch_size, config.parallel.zero_stage)
    code = found.code if found else ExitCode.BUG
    if found is None:
        traceback.print_exception(error)
    elif str(found):
        complain(found)
    line = f"{type(found or error).__name__}: {in_one_line(found or error) or guard.watch.verdict}"
    guard.watch.close()
    _record_alone(guard, code, line)
    if not code.is_of_another_rank:
        guard.watch.say_farewell(line)
    if guard.watch.hosts_store and guard.watch.world_size > 1:
        time.sleep(1.0)  # for the others to read it
    sys.stderr.flush()
    return abandon(code, error)


def _record_alone(guard: Guard, code: int, line: str) -> None:
    """The last words first: the launcher may kill this process as soon as another has ended."""
    if guard.run is not None:
        leave_words(guard.run, guard.watch.rank, code, line, guard.watch.step)
    _record(guard, code, line)


def _record(guard: Guard, code: int, line: str) -> None:
    if guard.heartbeat is not None and code == ExitCode.USER_ERROR:
        guard.heartbeat.undo()
    elif guard.heartbeat is not None:
        guard.heartbeat.end(code, line)
    if guard.sessions is not None:
        guard.sessions.end(code, line, guard.watch.step)
