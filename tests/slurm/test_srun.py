"""The same training under srun as under --nproc, on a real Slurm."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from launcher.metrics.records import read_records
from tests.slurm.conftest import Cluster, run

pytestmark = pytest.mark.slurm

SWIN_MOE = str(Path(sys.executable).with_name("swin-moe"))
TWO_NODES = ("--nodes=2", "--ntasks=2", "--ntasks-per-node=1")
CLOCKS = (
    "images_s",
    "data_wait_s",
    "time",
    "elapsed_s",
    "eval_images_s",
)  # all else is the same to the last bit
DISCOVER = """
import dataclasses, json
from parallel.ranks.discover import discover
print(json.dumps(dataclasses.asdict(discover())))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    sizes = ("--synthetic-train", "256", "--synthetic-val", "64")
    run(SWIN_MOE, "shards", "pack", "--source", "synthetic", "--out", str(out), *sizes)
    return out


def train(shards: Path, run_dir: Path) -> list[str]:
    """Four steps of the debugging model, its experts on two ranks."""
    data = [f"data.train={shards}/train", f"data.val={shards}/val"]
    brief = ["parallel.ep_size=2", "train.duration=4 steps", "optim.warmup=1 steps"]
    return [SWIN_MOE, "train", "configs/debug.yaml", *brief, *data, f"run_dir={run_dir}"]


def records(run_dir: Path) -> list[dict[str, object]]:
    """What a run's steps and evaluations measured, without the clocks; saves are nothing but clocks."""
    kept = [record for record in read_records(run_dir / "metrics.jsonl") if "save_s" not in record]
    return [{name: value for name, value in record.items() if name not in CLOCKS} for record in kept]


@pytest.fixture(scope="module")
def expected(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """The records of two ranks that --nproc started."""
    run_dir = tmp_path_factory.mktemp("nproc") / "run"
    run(*train(shards, run_dir), "--nproc", "2")
    found = records(run_dir)
    assert [record["step"] for record in found if "loss" in record] == [1, 2, 3, 4]
    return found


def test_srun_trains_as_nproc_does(
    cluster: Cluster, shards: Path, expected: list[dict[str, object]], tmp_path: Path
) -> None:
    cluster.run("srun", *TWO_NODES, *train(shards, tmp_path / "run"))
    assert records(tmp_path / "run") == expected


def test_a_batch_job_trains_as_nproc_does(
    cluster: Cluster, shards: Path, expected: list[dict[str, object]], tmp_path: Path
) -> None:
    cluster.batch(f"srun {shlex.join(train(shards, tmp_path / 'run'))}", *TWO_NODES, out=tmp_path / "out.txt")
    assert records(tmp_path / "run") == expected


def test_ranks_of_a_step_on_some_nodes_of_its_job(cluster: Cluster, tmp_path: Path) -> None:
    """A job on n1 to n4, a step of three tasks on n2 and n3: two tasks there and one here."""
    python = shlex.join([sys.executable, "-c", DISCOVER])
    step = f"srun --relative=1 --nodes=2 --ntasks=3 --distribution=block {python}"
    said = cluster.batch(step, "--nodes=4", "--ntasks=8", out=tmp_path / "out.txt")
    found = sorted((json.loads(line) for line in said.splitlines()), key=lambda ranks: ranks["rank"])
    numbers = [tuple(ranks[name] for name in ("rank", "local_rank", "local_world_size")) for ranks in found]
    assert numbers == [(0, 0, 2), (1, 1, 2), (2, 0, 1)]
    assert {(ranks["launcher"], ranks["world_size"]) for ranks in found} == {("slurm", 3)}
    assert len({ranks["init_method"] for ranks in found}) == 1


def test_a_shell_of_a_job_is_no_rank(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """Without srun it would be rank 0 of 1 in a job of four tasks."""
    line = shlex.join(train(shards, tmp_path / "run"))
    said = cluster.batch(f"{line} 2>&1; echo status $?", "--ntasks=4", "--nodes=2", out=tmp_path / "out.txt")
    assert (
        "LaunchError: SLURM_NTASKS is 4, but this process is one of 1: start the ranks with srun; or" in said
    )
    assert said.endswith("status 2\n")
    assert not (tmp_path / "run").exists()


def test_nproc_in_a_shell_of_a_job(
    cluster: Cluster, shards: Path, expected: list[dict[str, object]], tmp_path: Path
) -> None:
    line = shlex.join([*train(shards, tmp_path / "run"), "--nproc", "2"])
    cluster.batch(line, "--ntasks=4", "--nodes=2", out=tmp_path / "out.txt")
    assert records(tmp_path / "run") == expected


def test_ranks_that_are_dealt_out_to_nodes_are_refused(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    line = shlex.join(train(shards, tmp_path / "run"))
    step = f"srun --nodes=2 --ntasks=4 --distribution=cyclic {line} train.micro_batch_size=4 2>&1; true"
    said = cluster.batch(step, "--nodes=2", "--ntasks=4", out=tmp_path / "out.txt")
    assert said.count("LayoutError: ranks must be numbered node after node") == 1
    assert "srun --distribution=block" in said
