"""Who holds a run directory, by the word of a real squeue."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT, Cluster, environment

pytestmark = pytest.mark.slurm

TAKE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from launcher.rundir.run_lock import RunLock
RunLock(Path(sys.argv[1])).take()
"""
RECORD = '{"host": "elsewhere", "pid": 1, "start": "1", "job": {"id": "%s", "restarts": %d}}'
# its first start holds the lock on a machine of which nothing else is known, its second one takes it
HOLDER = """#!/bin/bash
#SBATCH --requeue --open-mode=append
if [ -z "$SLURM_RESTART_COUNT" ]; then
    printf '{record}' $SLURM_JOB_ID 0 >{lock}
else
    {python} {take} {lock} && echo taken
fi
sleep 600
"""


def take(cluster: Cluster, lock: Path) -> subprocess.CompletedProcess[str]:
    """Try to take it from outside of any job."""
    variables = environment({"SLURM_CONF": cluster.conf})
    return subprocess.run(
        [sys.executable, "-c", TAKE, str(lock)], env=variables, capture_output=True, text=True
    )


def wait_until(text: str, file: Path) -> None:
    end_s = time.monotonic() + 90
    while not file.exists() or text not in file.read_text():
        assert time.monotonic() < end_s, file.read_text() if file.exists() else f"no {file}"
        time.sleep(0.1)


def test_a_job_that_runs_was_requeued_and_has_ended(cluster: Cluster, tmp_path: Path) -> None:
    lock, out, script = tmp_path / "lock", tmp_path / "out.txt", tmp_path / "job.sbatch"
    (tmp_path / "take.py").write_text(TAKE)
    script.write_text(
        HOLDER.format(lock=lock, python=sys.executable, take=tmp_path / "take.py", record=RECORD)
    )
    job = cluster.run("sbatch", "--parsable", f"--output={out}", str(script)).strip()
    wait_until(job, lock)
    refused = take(cluster, lock)
    assert refused.returncode != 0
    assert f"RunLockedError: process 1 on elsewhere (Slurm job {job})" in refused.stderr

    cluster.run("scontrol", "requeue", job)
    wait_until("taken", out)
    assert f"this job ({job}) was requeued" in out.read_text()

    lock.write_text(RECORD % (job, 1))
    assert take(cluster, lock).returncode != 0
    cluster.run("scancel", job)
    end_s = time.monotonic() + 60
    while (taken := take(cluster, lock)).returncode:
        assert time.monotonic() < end_s, taken.stderr
        time.sleep(0.5)
    assert f"Slurm job {job} has ended" in taken.stderr
