"""A server of `swin-moe serve` in a process of its own, which ends with its context. No torch.

with started("runs/a", ["--max-batch", "8"]) as server:
    measure(server.address, ...)
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from launcher.bench.address import Address
from launcher.config.errors import ConfigError

# The kernel ends the server, too, when this process is killed.
PROGRAM = """
import sys
from parallel.ranks.identity import end_with_parent
end_with_parent(int(sys.argv.pop(1)))
from launcher.__main__ import main
sys.exit(main())
"""
LISTENS = re.compile(r"serving .* on (http://\S+)\n")
DRAIN_S = 15.0  # for the server to end by itself


class StartedServer:
    """A server that listens.

    Args:
        model: that it serves.
        process: of the server.
        errors: the file of its standard error.
    """

    def __init__(self, model: str, process: "subprocess.Popen[str]", errors: IO[str]) -> None:
        self._model, self._process, self._errors = model, process, errors
        self.address = Address.of(self._wait())

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self._process.pid

    def _wait(self) -> str:
        """The URL where it listens."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := LISTENS.fullmatch(line):
                return found[1]
        self._process.wait()
        raise ConfigError(self._last_words("before it listened"))

    def check(self) -> None:
        """Raise ConfigError if it has ended."""
        if self._process.poll() is not None:
            raise ConfigError(self._last_words("while it was measured"))

    def _last_words(self, when: str) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        reason = f": {lines[-1]}" if lines else ""
        return f"the server of {self._model} ended {when}, with status {self._process.returncode}{reason}"


@contextmanager
def started(model: str, options: Sequence[str]) -> Iterator[StartedServer]:
    """Start a server at a free port, and end it after the context, whatever happens there.

    Args:
        model: see `launcher.deploy.artifact.open_predictor`.
        options: of `swin-moe serve`.

    Raises:
        ConfigError: it ended before it listened; the message has its own.
    """
    line = [sys.executable, "-c", PROGRAM, str(os.getpid()), "serve", model, "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which ends the server
        )
        with process:
            try:
                yield StartedServer(model, process, errors)
            finally:
                _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(DRAIN_S)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also after a second Ctrl-C
        process.kill()
        process.wait()
