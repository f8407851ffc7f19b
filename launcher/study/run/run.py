"""`swin-moe study run` on this machine: trial after trial, also after one of them fails."""

import os
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from launcher.console.counts import span
from launcher.exit_codes import ExitCode
from launcher.process.signals import StopRequest
from launcher.rundir.history import committed_step
from launcher.study.grid.cost import TimeEstimator
from launcher.study.grid.resolve import PlannedTrial, StudyPlan
from launcher.study.grid.state import State, seconds_of, state_of
from launcher.study.run.status import failures, summary
from launcher.study.run.worker import Worker
from parallel.ranks.init import threads_per_rank

POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the trials are run."""

    nproc: int
    jobs: int
    train: tuple[str, ...] = ()  # further options of `swin-moe train`


@dataclass
class Runner:
    """The trials that wait, that are under way and that are done.

    Args:
        plan: the study.
        todo: the trials to run.
        estimator: what is known of how long trials take.
        options: see there.
    """

    plan: StudyPlan
    todo: tuple[PlannedTrial, ...]
    estimator: TimeEstimator
    options: Options
    waiting: deque[PlannedTrial] = field(default_factory=deque)
    under_way: list[Worker] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)  # of the trials that did not finish, in order

    def run(self) -> int:
        """Run all trials; the exit status: that of the first that failed, 75 where the study was stopped."""
        self.waiting.extend(self.todo)
        with StopRequest(self._pass_on, self._at_once) as stop:
            while self.under_way or (self.waiting and not stop.is_set):
                while self.waiting and len(self.under_way) < self.options.jobs and not stop.is_set:
                    self._start(self.waiting.popleft(), stop)
                self._look()
                time.sleep(POLL_S)
        return self._close(stop.is_set)

    def _start(self, planned: PlannedTrial, stop: StopRequest) -> None:
        before = state_of(planned.run, planned.requested)
        worker = Worker(planned, self.options.nproc, self._environment(), self.options.train)
        self.under_way.append(worker)
        if stop.signal:  # the request came before this process
            worker.ask_to_stop(stop.signal)
        steps = self.estimator.costs[planned.trial.name].steps
        what = "is evaluated" if before.name == "trained" else f"trains {steps or '?'} steps"
        step = committed_step(planned.run)
        at = f" from step {step}" if step and before.name != "trained" else ""
        self._say(planned, f"{what}{at}; {self._left()}")

    def _look(self) -> None:
        """Take note of what has ended."""
        for worker in list(self.under_way):
            if (code := worker.poll()) is None:
                continue
            self.under_way.remove(worker)
            planned = worker.planned
            state = state_of(planned.run, planned.requested)
            if state.name == "finished":
                self.estimator.finished[planned.trial.name] = seconds_of(planned.run, planned.requested)
            else:
                self.codes[planned.trial.name] = code or ExitCode.BUG
            self._say(planned, f"{described(state, time.monotonic() - worker.began_s)}; {self._left()}")

    def _left(self) -> str:
        """How much is left, and for how long."""
        todo = [(planned, 0.0) for planned in self.waiting]
        todo += [(worker.planned, time.monotonic() - worker.began_s) for worker in self.under_way]
        seconds = self.estimator.left_s(todo, self.plan.trials, self.options.jobs)
        return f"{len(todo)} to go" + (f", about {span(seconds)}" if seconds and todo else "")

    def _say(self, planned: PlannedTrial, text: str) -> None:
        number = self.plan.trials.index(planned) + 1
        print(f"[{number}/{len(self.plan.trials)}] {planned.trial.name}: {text}", flush=True)

    def _environment(self) -> dict[str, str]:
        """Ranks x threads of all trials at a time within the cores."""
        threads = threads_per_rank(self.options.nproc * self.options.jobs)
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}

    def _pass_on(self, number: signal.Signals) -> None:
        sys.stderr.write(
            f"{number.name}: trials under way stop after this step, saved; Ctrl-C or SIGTERM again ends them "
            "at once, unsaved\n"
        )
        for worker in list(self.under_way):
            worker.ask_to_stop(number)

    def _at_once(self, number: signal.Signals) -> None:
        for worker in list(self.under_way):
            worker.kill()
        os._exit(128 + number)

    def _close(self, is_stopped: bool) -> int:
        """Print the closing lines; returns the exit status."""
        states = {
            planned.trial.name: state_of(planned.run, planned.requested) for planned in self.plan.trials
        }
        print(closing(self.plan.directory, states))
        if is_stopped:
            return ExitCode.STOPPED
        return next((code for code in self.codes.values() if code != ExitCode.STOPPED), 0) or (
            ExitCode.STOPPED if self.codes else ExitCode.FINISHED
        )


def described(state: State, seconds: float) -> str:
    """How a trial ended, in one line."""
    if state.name != "finished":
        return f"{state.name} after {span(seconds)}: {state.reason or 'not done'}"
    figures = [f"top-1 {state.top1:.2%}"] if state.top1 is not None else []
    if state.value is not None and state.primary not in ("top1", "loss"):
        figures.append(f"{state.primary} {state.value:.4f}")
    figures += [f"loss {state.loss:.4f}"] if state.loss is not None else []
    figures += [f"{state.images_s:.0f} images/s"] if state.images_s is not None else []
    return f"finished in {span(seconds)}: {', '.join(figures)}"


def closing(directory: Path, states: dict[str, State]) -> str:
    """How many trials are where, and why some failed."""
    is_done = all(state.name == "finished" for state in states.values())
    again = [] if is_done else ["run the same command again for the trials that are not finished"]
    return "\n".join([f"{directory}: {summary(states)}", *failures(states), *again])
