"""A Slurm of our own for the tests: slurm/local_cluster.sh brings it up and down."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from launcher.cli.program import main

SITE = "environment: {GLOO_SOCKET_IFNAME: lo}\ncpus_per_rank: 1\nmem: 2G\n"  # of `swin-moe slurm` in tests
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


class Said(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Say = Callable[..., Said]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    for split in ("train", "val"):
        pack(synthetic(256, 64, num_classes=10, image_size=32), split, out / split, samples_per_shard=64)
    return out


@pytest.fixture
def say(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Say:
    """`swin-moe slurm ...` on the login node of the cluster, in the test's own directory."""
    (tmp_path / "site.yaml").write_text(SITE)
    monkeypatch.chdir(tmp_path)
    for name, value in {"SLURM_CONF": cluster.conf, "SWIN_MOE_SITE": str(tmp_path / "site.yaml")}.items():
        monkeypatch.setenv(name, value)

    def command(*arguments: str) -> Said:
        code = main(["slurm", *arguments])
        return Said(code, *capsys.readouterr())

    return command


def wait_until_gone(cluster: Cluster, deadline_s: float = 150) -> None:
    """Until the queue is empty."""
    end = time.monotonic() + deadline_s
    while cluster.run("squeue", "--noheader"):
        assert time.monotonic() < end, cluster.run("squeue")
        time.sleep(0.3)


def damage(tar: Path) -> None:
    """The same size, other bytes."""
    content = bytearray(tar.read_bytes())
    content[2000::3] = bytes(len(content[2000::3]))
    tar.write_bytes(content)
