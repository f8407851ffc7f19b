"""Slurm's commands as small shell scripts that write down how they were called."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from launcher.cli.program import main

RECORD = """\
#!/bin/bash
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\n'; } >>"$CALLS"
"""
BODIES = {
    "sbatch": '[[ ! -e $HOME/refusal ]] || { cat "$HOME/refusal" >&2; exit 1; }\n'
    """env -0 >"$HOME/sbatch.env"; echo '7;here'""",
    "squeue": 'cat "$HOME/queue" 2>/dev/null || :',
    "scancel": "",
    "sinfo": 'cat "$HOME/nodes" 2>/dev/null || :',
    "sacct": 'cat "$HOME/accounts" 2>/dev/null || :',
    "scontrol": "",
    "srun": 'env -0 >"$HOME/srun.env"; echo "srun: error: n2: task 1: Killed" >&2; . "$HOME/srun.sh"',
    "python": 'exit "$(cat "$HOME/after")"',
}


class Said(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


@dataclass
class FakeSlurm:
    """A login node and a first node in one directory, with commands that only write down."""

    home: Path
    capsys: pytest.CaptureFixture[str]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bin_directory = self.home / "bin"
        bin_directory.mkdir()
        for name, body in BODIES.items():
            (bin_directory / name).write_text(RECORD.replace("$CALLS", f"{self.home}/calls") + body + "\n")
            (bin_directory / name).chmod(0o755)
        self.set(after="0", queue="", site="{}")
        (self.home / "srun.sh").write_text("exit 0\n")
        variables = {"PATH": f"{bin_directory}:{os.environ['PATH']}", "HOME": str(self.home)}
        for name, value in (variables | {"SWIN_MOE_SITE": str(self.home / "site")}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(self.home)

    def set(self, **files: str) -> None:
        """What the commands say: queue, nodes, accounts, refusal, after (an exit status), site, srun.sh."""
        for name, text in files.items():
            (self.home / name).write_text(text)

    def site(self, **options: object) -> None:
        """The site's file, with the fake interpreter for the nodes."""
        self.set(site=json.dumps({"python": str(self.home / "bin" / "python"), **options}))

    def say(self, *arguments: str | Path) -> Said:
        """`swin-moe slurm ...`."""
        code = main(["slurm", *map(str, arguments)])
        return Said(code, *self.capsys.readouterr())

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call of a command."""
        path = self.home / "calls"
        lines = path.read_bytes().split(b"\0\n") if path.exists() else []
        found = [line.decode().split("\0") for line in lines if line]
        return [arguments for command, *arguments in found if command == name]

    def environment(self, name: str) -> dict[str, str]:
        """What sbatch or srun had."""
        pairs = (self.home / f"{name}.env").read_bytes().decode().split("\0")
        return dict(pair.split("=", 1) for pair in pairs if pair)

    def start(self, script: Path, **variables: str) -> subprocess.Popen[str]:
        """Run a batch script as slurmd does: in an environment with nothing but Slurm's variables."""
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
        first = {"HOME": str(self.home), "PATH": os.environ["PATH"], "SLURMD_NODENAME": "n1"}
        out = (self.home / "out").open("w")
        return subprocess.Popen(
            ["bash", script], env=first | slurm | variables, stdout=out, stderr=out, text=True
        )

    def run(self, script: Path, **variables: str) -> int:
        """The exit status of a batch script."""
        return self.start(script, **variables).wait(timeout=120)

    @property
    def out(self) -> str:
        """What the last batch script printed."""
        return (self.home / "out").read_text()
