"""One real start by each launcher: the same four steps, bit for bit. srun's: tests/slurm/test_srun.py."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, EXACT, command, only, overrides, steps

pytestmark = pytest.mark.long

BIN = Path(sys.executable).parent
ROOT = CONFIG.parents[1]
SHORT = ("train.duration=4 steps", "train.eval_every=4 steps", "parallel.ep_size=2")
MODULE = ("-m", "launcher")
LAUNCHERS: dict[str, tuple[str, ...]] = {
    "nproc": (sys.executable, *MODULE),
    "torchrun": (str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2", *MODULE),
    "mpirun": (str(BIN / "mpirun"), "-n", "2", sys.executable, *MODULE),
    # its script gets --local_rank=N, and LOCAL_SIZE instead of LOCAL_WORLD_SIZE
    "deepspeed": (str(BIN / "deepspeed"), "--num_gpus=2", "--master_port={port}", "--module", "launcher"),
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "DS_ACCELERATOR": "cpu",  # DeepSpeed's launcher counts devices
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PYTHONPATH": str(ROOT),
}


def losses(launcher: str, shards: Path, run: Path, *more: str) -> list[list[object]]:
    """The exact figures of four steps on two ranks that a launcher started."""
    line = [part.format(port=free_port()) for part in LAUNCHERS[launcher]]
    train = ["train", str(CONFIG), *overrides(shards, run, *SHORT), *more]
    done = subprocess.run(
        [*line, *train],
        cwd=run.parent,
        env=os.environ | ENVIRONMENT | {"TMPDIR": str(run.parent)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, f"{launcher}: {done.stdout}\n{done.stderr}"
    assert "evaluation       top-1 " in done.stdout
    assert len(steps(run)) == 4
    return [only(record, EXACT) for record in steps(run)]


def free_port() -> int:
    """DeepSpeed's launcher wants to be told."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def expected(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[object]]:
    """The same on two forked ranks."""
    run = tmp_path_factory.mktemp("forked") / "run"
    line = ["train", str(CONFIG), *overrides(shards, run, *SHORT)]
    assert {outcome.code for outcome in run_on_ranks(command, 2, *line)} == {0}
    return [only(record, EXACT) for record in steps(run)]


@pytest.mark.parametrize(
    "launcher",
    [
        "mpirun",
        pytest.param("nproc", marks=pytest.mark.slow),
        pytest.param("torchrun", marks=pytest.mark.slow),
        pytest.param("deepspeed", marks=pytest.mark.slow),
    ],
)
def test_every_launcher_gives_the_same_losses(
    shards: Path, tmp_path: Path, expected: list[list[object]], launcher: str
) -> None:
    if launcher == "mpirun" and not Path(LAUNCHERS[launcher][0]).exists():
        pytest.skip("needs MPI: pip install 'swin-moe[mpi]'")
    nproc = ("--nproc", "2") if launcher == "nproc" else ()
    assert losses(launcher, shards, tmp_path / "run", *nproc) == expected
