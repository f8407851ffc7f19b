"""A submitted run on four nodes that is asked to stop: it goes on by itself, or by `resume` on two nodes."""

import re
import time
from pathlib import Path

import pytest

from launcher.rundir.history import all_sessions
from launcher.rundir.paths import RunFiles
from tests.faults import run
from tests.launcher.running import CONFIG, only, overrides, steps
from tests.launcher.short_run import assert_same
from tests.slurm.conftest import Cluster, Say, wait_until_gone

pytestmark = pytest.mark.slurm

STEPS = 160
CLOSE = ("loss", "aux_loss", "grad_norm")


def line(shards: Path, path: Path, steps: int = STEPS) -> list[str]:
    """Four ranks hold the experts twice; 16 steps are an epoch."""
    options = (
        f"train.duration={steps} steps",
        "train.micro_batch_size=4",
        "train.eval_every=40 steps",
        "checkpoint.every=50 steps",
        "parallel.ep_size=2",
    )
    return [str(CONFIG), *overrides(shards, path, *options)]


@pytest.fixture(scope="module")
def reference(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on four ranks that nobody disturbs."""
    path = tmp_path_factory.mktemp("reference") / "run"
    assert [rank.code for rank in run(4, ["train", *line(shards, path)])] == [0] * 4
    return path


def wait_for_steps(path: Path, count: int, say: Say, deadline_s: float = 150) -> None:
    end = time.monotonic() + deadline_s
    while not (path / "metrics.jsonl").exists() or len(steps(path)) < count:
        assert time.monotonic() < end, say("logs", str(path)).out
        time.sleep(0.02)


def test_stopped_requeued_and_finished_is_the_same_run(
    cluster: Cluster,
    shards: Path,
    reference: Path,
    say: Say,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run"
    done = say("submit", *line(shards, path), "--nodes", "4")
    assert done.code == 0, done.err
    wait_for_steps(path, 20, say)  # in the second epoch
    cluster.run("scancel", "--batch", "--signal=USR1", done.out.split()[1])  # as Slurm does it
    wait_until_gone(cluster, 300)
    told = assert_stopped_and_finished(path, reference, say)
    with capsys.disabled():
        print(f"\nUSR1 to the batch script: {told}")


@pytest.mark.slow  # time limits are in whole minutes
def test_the_time_limit_itself(
    cluster: Cluster, shards: Path, say: Say, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm's own USR1, some 40 to 60 s after the start of a job of two minutes."""
    reference, path = tmp_path / "reference", tmp_path / "run"
    long = line(shards, reference, 1600)
    assert [rank.code for rank in run(4, ["train", *long], timeout_s=400)] == [0] * 4
    (tmp_path / "site.yaml").write_text((tmp_path / "site.yaml").read_text() + "signal_s: 60\n")
    done = say("submit", *line(shards, path, 1600), "--nodes", "4", "--time", "2")
    assert done.code == 0, done.err
    wait_until_gone(cluster, 600)
    told = assert_stopped_and_finished(path, reference, say)
    with capsys.disabled():
        print(f"\nthe time limit: {told}")


def assert_stopped_and_finished(path: Path, reference: Path, say: Say) -> set[str]:
    """The run went on by itself at the very steps at which it stopped; what was said of its saves."""
    sessions, log = all_sessions(RunFiles(path)), say("logs", str(path), "--lines", "200").out
    *stopped, finished = [each["code"] for each in sessions]
    assert stopped, log
    assert set(stopped) == {75}, log
    assert finished == 0, log
    for before, after in zip(sessions, sessions[1:], strict=False):
        assert before["step"] == before["committed"] == after["from_step"]  # at that very step
    assert [each["job"]["restarts"] for each in sessions] == list(range(len(sessions)))
    assert_same(path, reference)
    told = set(re.findall(r"at step \d+ of \d+, saved in [\d.]+ s", log))
    assert len(told) == len(stopped)
    return told


def test_elastic_four_nodes_to_two_in_mid_epoch(
    cluster: Cluster,
    shards: Path,
    reference: Path,
    say: Say,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run"
    done = say("submit", *line(shards, path), "parallel.ep_size=4", "--nodes", "4")
    assert done.code == 0, done.err
    wait_for_steps(path, 20, say)
    assert say("cancel", str(path)).code == 0
    wait_until_gone(cluster)
    at = all_sessions(RunFiles(path))[-1]["committed"]
    assert at % 16, "an epoch's boundary by chance"
    resumed = say("resume", str(path), "--nodes", "2", "--elastic")
    assert resumed.code == 0, resumed.err
    wait_until_gone(cluster, 300)
    log = say("logs", str(path), "--lines", "200").out
    assert re.search(r"parallel.ep_size: 4 -> 2", log), log
    first, second = all_sessions(RunFiles(path))
    assert (first["ranks"], second["ranks"], second["from_step"], second["code"]) == (4, 2, at, 0), log

    pairs = list(zip(steps(path), steps(reference), strict=True))
    worst = 0.0
    for found, wanted in pairs[: at + 20]:
        assert only(found, CLOSE) == pytest.approx(only(wanted, CLOSE), rel=1e-4)
        worst = max(worst, abs(found["loss"] / wanted["loss"] - 1))
    # the same samples (tests/launcher/validation/test_elastic.py compares them) drop the same tokens
    drops = [[record["dropped_fraction"] for record in steps(each)[: at + 20]] for each in (path, reference)]
    assert drops[0] == pytest.approx(drops[1], abs=2 / 512)
    with capsys.disabled():
        print(f"\n4 nodes to 2 at step {at} of {STEPS}: losses of 20 more steps within {worst:.1e}")
