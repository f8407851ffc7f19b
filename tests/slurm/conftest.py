"""A Slurm of our own for the tests: slurm/local_cluster.sh brings it up and down."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "slurm" / "local_cluster.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun")


def environment(more: dict[str, str]) -> dict[str, str]:
    """Ours without the marks of a Slurm that pytest may run under; one thread a rank, gloo on loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return kept | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | more


def run(*command: str, timeout_s: float = 300, **variables: str) -> str:
    """Its standard output; a failure shows all that it said."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{shlex.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Four nodes, n1 to n4, of two CPUs each."""

    conf: str

    def run(self, *command: str, timeout_s: float = 300) -> str:
        return run(*command, timeout_s=timeout_s, SLURM_CONF=self.conf)

    def batch(self, command: str, *options: str, out: Path) -> str:
        """Submit a shell command, wait for its end, and return what it printed."""
        submit = ("sbatch", "--wait", f"--output={out}", *options, f"--wrap={command}")
        try:
            self.run(*submit)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{out.read_text() if out.exists() else ''}") from None
        return out.read_text()


@contextlib.contextmanager
def cluster_up() -> Iterator[Cluster]:
    """A cluster in a temporary directory of its own: pytest's are too deep for sockets."""
    if any(shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None for program in PROGRAMS):
        pytest.skip("needs Slurm and munge: slurm/local_cluster.sh install (apt-get install slurm-wlm munge)")
    directory = Path(tempfile.mkdtemp(prefix="slurm.")).resolve()
    cluster = Cluster(conf=str(directory / "slurm.conf"))
    try:
        run(str(SCRIPT), "up", "--dir", str(directory), timeout_s=150)
        yield cluster
    finally:
        with uninterrupted():
            if (directory / "munge" / "key").exists():  # `up` has not cleaned up after itself
                cluster.run(str(SCRIPT), "down", timeout_s=60)
            shutil.rmtree(directory)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Deaf to Ctrl-C, and so are the processes started meanwhile: no daemon is to be left behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a mask would leave it to torch's other threads
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with cluster_up() as cluster:
        yield cluster
