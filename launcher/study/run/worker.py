"""One trial under way: `swin-moe train`, then `swin-moe eval`, each a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from launcher.config.load import dump_config
from launcher.exit_codes import ExitCode
from launcher.process.signals import STOP_SIGNALS
from launcher.rundir.postmortem import close_last
from launcher.slurm.epilogue import REFUSAL
from launcher.study.grid.resolve import PlannedTrial
from launcher.study.grid.state import EVALUATING, TRAINING, is_trained, note, note_end
from parallel.ranks.identity import end_with_parent


class Worker:
    """A trial that is being trained or evaluated; its output goes to cells/NAME/log.txt.

    Args:
        planned: the trial.
        nproc: ranks.
        environment: of its processes, on top of ours.
        options: further ones of `swin-moe train`.
    """

    def __init__(
        self, planned: PlannedTrial, nproc: int, environment: Mapping[str, str], options: tuple[str, ...] = ()
    ) -> None:
        self.planned, self._nproc, self._options = planned, nproc, options
        self._environment = {**os.environ, **environment}
        self.began_s = time.monotonic()
        self._asked_to_stop = False
        self._start(EVALUATING if is_trained(planned.run) else TRAINING)

    def poll(self) -> int | None:
        """None while it goes on; at its end the exit status of the phase that ended it."""
        code = self.process.poll()
        if code is None:
            return None
        code = 128 - code if code < 0 else code
        if code and self._asked_to_stop and self.phase == EVALUATING:
            code = int(ExitCode.STOPPED)
        reason = self._reason(code)
        note_end(self.planned.run, code, reason, time.monotonic() - self._phase_began_s)
        if code == ExitCode.FINISHED and self.phase == TRAINING:
            self._start(EVALUATING)
            return None
        return code

    def ask_to_stop(self, number: signal.Signals) -> None:
        """Training saves and stops; an evaluation is done again another time."""
        self._asked_to_stop = True
        if self.process.poll() is None:
            self.process.send_signal(number if self.phase == TRAINING else signal.SIGKILL)

    def kill(self) -> None:
        """End it at once; its ranks die with it."""
        if self.process.poll() is None:
            self.process.kill()

    def _start(self, phase: str) -> None:
        run, self.phase = self.planned.run, phase
        run.path.mkdir(parents=True, exist_ok=True)
        self._phase_began_s = time.monotonic()
        with (run.path / "log.txt").open("ab") as log:
            self._log_began = log.tell()
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # inherited, until the command listens
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-u", "-m", "launcher", *self._command(phase)],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=self._die_with_us,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        note(run, phase, self.process.pid)

    def _command(self, phase: str) -> list[str]:
        run, ranks = self.planned.run, ["--nproc", str(self._nproc)]
        if phase == EVALUATING:
            return ["eval", str(run.path), *ranks, *self.planned.requested.arguments]
        config = run.path / "planned.yaml"
        config.write_text(dump_config(self.planned.config))
        return ["train", str(config), *ranks, "--resume", "auto", *self._options]

    def _die_with_us(self) -> None:
        """In the child: save and stop when the study's process is killed, rather than train on alone."""
        end_with_parent(signal_number=signal.SIGTERM)

    def _reason(self, code: int) -> str:
        """Why a phase ended so: by the post-mortem of its session, else by its last line."""
        if code == ExitCode.FINISHED:
            return ""
        if code == ExitCode.STOPPED and self.phase == EVALUATING:
            return "stopped before its evaluation was done"
        last_line = self._last_line()
        if self.phase == EVALUATING or code in (ExitCode.USER_ERROR, ExitCode.CRASH_LOOP):
            return last_line or f"status {code}"
        ending: Any = close_last(self.planned.run, code)
        return ending.reason if ending and ending.code else last_line or f"status {code}"

    def _last_line(self) -> str:
        """The last error in the log of this phase, in one line; of an unexpected one the traceback's end."""
        with (self.planned.run.path / "log.txt").open("rb") as log:
            log.seek(self._log_began)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return next((line for line in reversed(lines) if REFUSAL.match(line)), lines[-1] if lines else "")
