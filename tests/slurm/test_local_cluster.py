"""slurm/local_cluster.sh: clusters side by side, and nothing left of one that went down."""

import time
from pathlib import Path

import pytest

from tests.slurm.conftest import SCRIPT, Cluster, cluster_up

pytestmark = pytest.mark.slurm

STUBBORN = "trap '' TERM; setsid sleep 600 & sleep 600"  # deaf to TERM; one child in a session of its own
DAEMONS = {"munged", "slurmctld", "slurmd"}


def processes_with(conf: str) -> set[str]:
    """The names of the processes that have this slurm.conf in their environment."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_CONF={conf}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.add((process / "comm").read_text().strip())
        except OSError:  # another user's, or just gone
            continue
    return found


def wait_for(name: str, conf: str, deadline_s: float = 30) -> None:
    end = time.monotonic() + deadline_s
    while name not in processes_with(conf):
        assert time.monotonic() < end, f"no {name} after {deadline_s} s"
        time.sleep(0.05)


def test_two_clusters_do_not_meet_and_leave_nothing_behind(cluster: Cluster) -> None:
    with cluster_up() as other:
        assert other.run(str(SCRIPT), "env") == f"export SLURM_CONF={other.conf}\n"
        who = ("srun", "--nodes=4", "--ntasks=4", "sh", "-c", "echo $SLURM_CLUSTER_NAME $SLURM_JOB_ID")
        ours, theirs = (set(c.run(*who).splitlines()) for c in (cluster, other))
        assert len(ours) == len(theirs) == 1
        assert not set(ours.pop().split()) & set(theirs.pop().split())
        other.run("sbatch", "--nodes=2", "--output=/dev/null", f"--wrap=srun sh -c {STUBBORN!r}")
        other.run("sbatch", "--nodes=2", "--output=/dev/null", f"--wrap={STUBBORN}")
        wait_for("sleep", other.conf)
        assert processes_with(other.conf) >= {*DAEMONS, "slurmstepd"}
    assert processes_with(other.conf) == set()
    assert processes_with(cluster.conf) >= DAEMONS
