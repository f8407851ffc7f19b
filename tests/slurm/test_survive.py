"""A run on a real Slurm that loses a rank, then stands still, then loses a node, and misses nothing."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.exit_codes import ExitCode
from launcher.rundir.history import Session, all_sessions, committed_step
from launcher.rundir.paths import RunFiles, read_json
from launcher.slurm.status import describe
from tests.faults import end, run
from tests.launcher.running import CONFIG, overrides, steps
from tests.launcher.short_run import assert_same
from tests.slurm.conftest import ROOT, Cluster, environment

pytestmark = pytest.mark.slurm

STEPS, EVERY, TIMEOUT_S = 160, 20, 10
KILL_WAIT_S = 7.0  # KillWait of slurm/local_cluster.sh, and the 2 s that srun adds
NODE_DOWN_S = 30.0  # its SlurmdTimeout, and the time between two looks
START_S = 150.0  # until a requeued job is at its first step, on a machine that runs other tests too

JOB = """#!/bin/bash
#SBATCH --requeue --open-mode=append
mv -f slurm/srun-said.txt slurm/srun-said-before.txt 2>/dev/null
srun --kill-on-bad-exit=1 --chdir={root} --output={run}/slurm/tasks.txt --open-mode=append {train} \\
    2>slurm/srun-said.txt
code=$?
export PYTHONPATH={root}
{python} -m launcher.slurm.epilogue {run} --code $code --said slurm/srun-said.txt --requeue-limit 5
status=$?
[ $status != 75 ] || {{ scontrol requeue $SLURM_JOB_ID; sleep 600; }}
exit $status
"""


def line(shards: Path, path: Path) -> list[str]:
    """The command, its experts on two ranks."""
    options = (
        f"train.duration={STEPS} steps",
        "train.eval_every=40 steps",
        f"checkpoint.every={EVERY} steps",
        f"parallel.collective_timeout_s={TIMEOUT_S}",
        "parallel.ep_size=2",
    )
    return ["train", str(CONFIG), "--resume", "auto", *overrides(shards, path, *options)]


def submit(cluster: Cluster, shards: Path, path: Path) -> str:
    """The job, on n2 and n3."""
    (path / "slurm").mkdir(parents=True)
    train = shlex.join([sys.executable, "-u", "-m", "launcher", *line(shards, path)])
    script = JOB.format(root=ROOT, run=path, python=sys.executable, train=train)
    (path / "slurm/job.sbatch").write_text(script)
    where = ("--nodelist=n2,n3", "--ntasks-per-node=1", f"--chdir={path}", "--output=slurm/log.txt")
    return cluster.run("sbatch", "--parsable", *where, str(path / "slurm/job.sbatch")).strip()


def wait_for(condition: Callable[[], bool], deadline_s: float, path: Path) -> float:
    """Seconds that it took; a failure shows all that the job said."""
    start_s = time.monotonic()
    while not condition():
        if time.monotonic() > start_s + deadline_s:
            texts = [f"{each}:\n{each.read_text()}" for each in sorted(path.glob("slurm/*.txt"))]
            pytest.fail("\n".join([f"not after {deadline_s} s", describe(RunFiles(path)), *texts]))
        time.sleep(0.01)
    return time.monotonic() - start_s


def processes(cluster: Cluster, **variables: str) -> list[int]:
    """Those with all these in their environment."""
    marks = {f"{name}={value}".encode() for name, value in variables.items()}
    marks.add(f"SLURM_CONF={cluster.conf}".encode())
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marks <= set((process / "environ").read_bytes().split(b"\0")):
                found.append(int(process.name))
        except OSError:  # just gone
            continue
    return found


def rank_1(cluster: Cluster, path: Path, step: int) -> int:
    """Its process, once the run has made so many steps."""
    wait_for(lambda: (path / "metrics.jsonl").exists() and len(steps(path)) >= step, START_S, path)
    (pid,) = [
        pid
        for pid in processes(cluster, SLURM_PROCID="1")
        if "launcher" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    return pid


def session_after(path: Path, number: int, deadline_s: float) -> tuple[Session, float]:
    """How a session ended by the post-mortem, and the seconds until then."""
    run_files = RunFiles(path)

    def is_over() -> bool:
        return any("by" in each for each in all_sessions(run_files)[number - 1 : number])

    waited_s = wait_for(is_over, deadline_s, path)
    return all_sessions(run_files)[number - 1], waited_s


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def slurmd(cluster: Cluster, node: str) -> list[str]:
    return ["slurmd", "-f", cluster.conf, "-N", node]


def test_a_run_survives_a_killed_rank_a_stopped_rank_and_a_lost_node(
    cluster: Cluster, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, path = tmp_path / "reference", tmp_path / "run"
    assert [rank.code for rank in run(2, line(shards, reference))] == [0, 0]
    submit(cluster, shards, path)
    files = RunFiles(path)

    os.kill(rank_1(cluster, path, 26), signal.SIGKILL)
    killed, killed_s = session_after(path, 1, KILL_WAIT_S + 20)
    place = r"[\w<>]+ \([\w/.-]+\.py:\d+\)"
    assert re.search(
        rf"lost rank 1 \(node n3\): killed by SIGKILL; last heartbeat at step \d+, in {place}$",
        killed["reason"],
    )
    assert killed["code"] == ExitCode.LOST_RANK

    os.kill(rank_1(cluster, path, 66), signal.SIGSTOP)
    hung, hung_s = session_after(path, 2, 3 * TIMEOUT_S + KILL_WAIT_S + 10)
    silent = rf"rank 1 \(node n3\) has sent no heartbeat for \d+ s; last heartbeat at step \d+, in {place}"
    assert re.search(rf"{silent}; rank 0 waits for it in {place} at step \d+$", hung["reason"])
    assert hung["code"] == ExitCode.HANG

    pid = rank_1(cluster, path, 106)
    (daemon,) = [
        pid
        for pid in processes(cluster)
        if Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:5] == slurmd(cluster, "n3")
    ]
    end([daemon, parent(pid), pid])  # slurmd, slurmstepd and its task: all that there is of a node
    lost_s = wait_for(lambda: "State=DOWN" in _state(cluster, "n3"), NODE_DOWN_S + 15, path)
    assert describe(files).splitlines()[0].startswith(f"{path}: ended at step ")
    with (tmp_path / "slurmd.txt").open("w") as out:
        subprocess.run(
            slurmd(cluster, "n3"),
            env=environment({"SLURM_CONF": cluster.conf, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}),
            stdout=out,
            stderr=out,
            check=True,
        )
    node, _ = session_after(path, 3, START_S)  # of which the next session finds out, for the job was killed
    assert re.search(r"lost rank 1 \(node n3\): the node failed; last heartbeat at step \d+", node["reason"])

    wait_for(lambda: ": finished; " in (path / "slurm/log.txt").read_text(), START_S, path)
    assert_same(path, reference)
    sessions = all_sessions(files)
    codes = [each["code"] for each in sessions]
    # on a busy machine Slurm may requeue the job once more when the lost node comes back
    assert [code for code in codes if code != ExitCode.STOPPED] == [80, 81, 80, 0]
    assert [each["job"]["restarts"] for each in sessions] == [*range(len(codes))]
    for before, after in zip(sessions, sessions[1:], strict=False):
        assert after["from_step"] % EVERY == 0
        assert before["step"] - after["from_step"] < 2 * EVERY  # the newest may not have been whole yet
    assert committed_step(files) == read_json(files.progress)["step"] == STEPS
    with capsys.disabled():
        times = f"killed rank {killed_s:.1f} s, stopped rank {hung_s:.1f} s, lost node {lost_s:.1f} s"
        print(f"\n{times} until the session's end was known (hang: {TIMEOUT_S} s)\n{describe(files)}")


def _state(cluster: Cluster, node: str) -> str:
    """All of it: `sinfo` would say of a node that is down and has a job ending that it completes."""
    return cluster.run("scontrol", "show", "node", node, "--oneliner")
