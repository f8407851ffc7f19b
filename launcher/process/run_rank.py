"""The life of one rank: join the others, work, and leave with an exit status that says why."""

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist

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
from launcher.process.classify_exit import as_run_error, in_one_line
from launcher.process.local_launcher import die_with_agent, is_rank
from launcher.process.signals import StopRequest
from launcher.process.user_errors import USER_ERRORS, print_error
from launcher.rundir.crash_report import write_crash_report
from launcher.rundir.heartbeat import Heartbeat, interval_s
from launcher.rundir.paths import RunFiles
from launcher.rundir.sessions import Sessions
from parallel.ranks import gpu
from parallel.ranks.discover import discover
from parallel.ranks.init import join, leave, prepare_process
from parallel.ranks.logs import set_up_logging
from parallel.ranks.rank import Ranks
from parallel.watchdog.options import WatchdogOptions
from parallel.watchdog.watch import PREFIX, SLOW, Watchdog, connect

LOG_END_S = 3.0  # of a session that failed: the launcher may kill this process soon
SHARED = (Stopped, BadDataError, DivergedError, FinalSaveError, CrashLoopError)  # raised on all ranks alike


def abandon(code: int, error: BaseException) -> int:
    """End this process at once, without leaving the process group."""
    os._exit(code)


def no_hook(event: str, trainer: Any) -> None:
    """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How a process becomes a rank and how it ends. Tests give other functions."""

    discover: Callable[[], Ranks] = discover
    join: Callable[[Ranks, torch.device, timedelta], None] = join
    leave: Callable[[], None] = leave
    abandon: Callable[[int, BaseException], int] = abandon
    hook: Callable[[str, Any], None] = no_hook  # of the trainer: see training/trainer.py


class SessionLog(Protocol):
    """What is recorded of a session, and must learn that it failed."""

    def close(self, status: Literal["failed"], timeout_s: float) -> None:
        """Finish it, if that is not done; returns after `timeout_s` at the latest."""


@dataclass(kw_only=True)
class RankContext:
    """What the work of a rank needs beside its configuration."""

    stop: StopRequest
    watch: Watchdog
    runtime: Runtime = field(default_factory=Runtime)
    run: RunFiles | None = None  # of a training run, once its session has begun
    sessions: Sessions | None = None  # of a training run, on rank 0
    heartbeat: Heartbeat | None = None  # likewise
    log: SessionLog | None = None  # likewise, once training begins
    ending: str = "finished"  # the reason of a session that ends well

    def note(self, **values: float) -> None:
        """Add values to progress.json."""
        if self.heartbeat is not None:
            self.heartbeat.note(**values)


Work = Callable[[Ranks, torch.device, RankContext], None]


def run_rank(config: RunConfig, work: Work, runtime: Runtime | None = None) -> int:
    """Join the other ranks, work, and leave them.

    Rank 0 prints an error that all ranks raise. An error of this rank alone ends the process at once, because
    the others wait in a collective.

    Args:
        config: of the run.
        work: what this rank does.
        runtime: how it joins and leaves.

    Returns:
        The exit status, unless the process ends here.
    """
    die_with_agent()
    warnings.filterwarnings("ignore", module=r"torch\.distributed")  # of calls that DeepSpeed makes
    runtime = runtime or Runtime()
    with StopRequest() as stop:
        ranks = runtime.discover()
        set_up_logging(ranks.rank, ranks.world_size)
        device = prepare_process(ranks)
        if device.type == "cuda":
            gpu.dump_collectives_to(config.run_dir, os.environ)
        try:
            runtime.join(ranks, device, longest_wait(config))
        except dist.DistError as error:
            print_error(
                LostRankError(f"rank {ranks.rank} of {ranks.world_size} did not meet the others: {error}")
            )
            return ExitCode.LOST_RANK
        watch = open_watch(ranks, config.parallel.collective_timeout_s)
        context = RankContext(stop=stop, watch=watch, runtime=runtime)
        context.watch.at_end = lambda code, line: _record_alone(context, code, line)
        try:
            work(ranks, device, context)
        except USER_ERRORS as error:
            return _leave_with(error, ExitCode.USER_ERROR, context)
        except SHARED as error:
            return _leave_with(error, error.code, context)
        except BaseException as error:
            return _end(error, config, context)
        context.watch.close()
        context.watch.exchange_last()
        _record(context, ExitCode.FINISHED, context.ending)
    runtime.leave()
    return ExitCode.FINISHED


def longest_wait(config: RunConfig) -> timedelta:
    """The process groups' own time-out: behind whatever the watch may allow a phase."""
    timeout_s = config.parallel.collective_timeout_s
    return timedelta(seconds=timeout_s + max(SLOW * timeout_s, config.data.retry_s))


def open_watch(ranks: Ranks, timeout_s: float) -> Watchdog:
    """The watch over this rank, through the store of whoever started it, or of the process group."""
    if is_rank():
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store: dist.Store = dist.PrefixStore(PREFIX, dist.TCPStore(host, port, is_master=False))
    else:
        store = connect(dist.distributed_c10d._get_default_store())
    options = WatchdogOptions(
        timeout_s=timeout_s,
        hang_code=ExitCode.HANG,
        lost_code=ExitCode.LOST_RANK,
        hosts_store=ranks.rank == 0 and not is_rank(),
        listen_s=interval_s(timeout_s) if ranks.rank == 0 else None,
        nccl=dist.get_backend() == "nccl",
    )
    return Watchdog(store, ranks.rank, ranks.world_size, options)


def _leave_with(error: BaseException, code: ExitCode, context: RankContext) -> int:
    """All ranks end with the same error: rank 0 says it, and writes it down before any of them is gone."""
    context.watch.close()
    context.watch.exchange_last()
    _record(context, code, f"{type(error).__name__}: {error}")
    if context.watch.rank == 0:
        print_error(error)
    context.watch.wait_for_rank_0()
    context.runtime.leave()
    return code


def _end(error: BaseException, config: RunConfig, context: RankContext) -> int:
    """This rank ends alone, and leaves its last words for the others."""
    run_error = as_run_error(error, context.watch, config.train.micro_batch_size, config.parallel.zero_stage)
    code = run_error.code if run_error else ExitCode.BUG
    if run_error is None:
        traceback.print_exception(error)
    elif str(run_error):
        print_error(run_error)
    line = (
        f"{type(run_error or error).__name__}: {in_one_line(run_error or error) or context.watch.diagnosis}"
    )
    context.watch.close()
    _record_alone(context, code, line)
    if not code.is_of_another_rank:
        context.watch.post_reason(line)
    if context.watch.options.hosts_store and context.watch.world_size > 1:
        time.sleep(1.0)  # for the others to read it
    sys.stderr.flush()
    return context.runtime.abandon(code, error)


def _record_alone(context: RankContext, code: int, line: str) -> None:
    """The last words first: the launcher may kill this process as soon as another has ended."""
    if context.run is not None:
        write_crash_report(context.run, context.watch.rank, code, line, context.watch.step)
    _record(context, code, line)


def _record(context: RankContext, code: int, line: str) -> None:
    if context.heartbeat is not None and code == ExitCode.USER_ERROR:
        context.heartbeat.undo()
    elif context.heartbeat is not None:
        context.heartbeat.end(code, line)
    if context.sessions is not None:
        context.sessions.end(code, line, context.watch.step)
    if context.log is not None:
        context.log.close("failed", LOG_END_S)
