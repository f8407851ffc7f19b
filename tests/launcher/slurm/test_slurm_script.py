"""The batch script, run by bash with commands that write down what they are told."""

import os
import re
import signal
import stat
import time
from pathlib import Path

import pytest

from launcher.slurm.quoting import directive, job_name
from launcher.slurm.script import template
from tests.launcher.fake_slurm import FakeSlurm
from tests.launcher.running import CONFIG, overrides

HARD = [
    "a b",
    "it's",
    'say "x"',
    "a;touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "%j 100%",
    "é ü 漢",
    "@run@",
]
HARD += ["-x", "a&b|c>d", "*?[a]", "#c", "${HOME}", "~"]


def submitted(slurm: FakeSlurm, shards: Path, name: str, *more: str) -> Path:
    """A run directory of that name, submitted from within its parent."""
    line = overrides(shards, f'"{name}"' if '"' not in name else f"'{name}'")
    done = slurm.say("submit", CONFIG, *line, "--nodes=2", *more)
    assert done.code == 0, done.err
    return slurm.home / name


@pytest.mark.parametrize("name", HARD)
def test_every_name_arrives_as_it_is(slurm: FakeSlurm, shards: Path, name: str) -> None:
    slurm.site(environment={"TOKEN": name}, account=name)
    run = submitted(slurm, shards, name, f"--partition={name}")
    script = run / "slurm" / "job.sbatch"
    assert slurm.run(script) == 0, slurm.out

    [train] = slurm.calls("srun")
    at = train.index("-m")
    assert train[at:] == ["-m", "launcher", "train", f"{run}/slurm/config.yaml", "--resume", "auto"]
    [after] = slurm.calls("python")
    assert after[:4] == ["-m", "launcher.slurm.epilogue", str(run), "--code"]
    assert slurm.environment("srun")["TOKEN"] == name
    assert slurm.calls("sbatch") == [["--parsable", str(script)]]
    assert not list(slurm.home.rglob("pwned"))
    text = script.read_text()
    assert re.search(r"^#SBATCH --job-name=[A-Za-z0-9._-]{1,64}$", text, re.M)
    assert directive("partition", name) in text.splitlines()
    assert "TOKEN" not in text


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--partition", "a\nb"), "--partition"),
        (("--account", "a\x1b[0m"), "--account"),
        (("--job-name", "a b"), "--job-name"),
        (("--job-name", "x" * 65), "--job-name"),
        (("--qos", "a\\b"), "--qos"),
        (("run_dir=a\\b",), "run_dir"),
        (('run_dir="a\\nb"',), "run_dir"),
        (("--dependency", "afterok:1\r"), "--dependency"),
    ],
)
def test_what_cannot_be_quoted_is_refused(
    slurm: FakeSlurm, shards: Path, arguments: tuple[str, ...], option: str
) -> None:
    before = sorted(slurm.home.iterdir())
    done = slurm.say("submit", CONFIG, *overrides(shards, "run"), *arguments)
    assert done.code == 2
    assert option in done.err
    assert sorted(slurm.home.iterdir()) == before
    assert slurm.calls("sbatch") == []


def test_a_site_with_a_line_break_is_refused(slurm: FakeSlurm, shards: Path) -> None:
    slurm.site(environment={"KEY": "a\nb"}, modules=["x\ty"])
    done = slurm.say("submit", CONFIG, *overrides(shards, "run"))
    assert done.code == 2
    assert "environment.KEY" in done.err
    assert "--modules[0]" in done.err


def test_names_of_jobs() -> None:
    assert [job_name(text) for text in ("a b;c", "é", "-x-", "x" * 99)] == [
        "a-b-c",
        "swin-moe",
        "x",
        "x" * 64,
    ]


def test_the_environment_is_a_private_file_and_no_more(
    slurm: FakeSlurm, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "3", "MY_SECRET": "s", "SLURM_NTASKS": "9", "SBATCH_PARTITION": "p"}.items():
        monkeypatch.setenv(name, value)
    slurm.site(environment={"KEY": "a;b"}, cpus_per_rank=3, partition="gpu")
    run = submitted(slurm, shards, "run")
    file = run / "slurm" / "environment.sh"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "export KEY='a;b'\n" in file.read_text()
    assert "a;b" not in (run / "slurm" / "submission.json").read_text()
    sbatch = slurm.environment("sbatch")
    assert "SLURM_NTASKS" not in sbatch  # of a job in which the user sits
    assert "SBATCH_PARTITION" not in sbatch  # it would win over what was asked for
    assert "#SBATCH --export=NIL" in (run / "slurm" / "job.sbatch").read_text().splitlines()

    assert slurm.run(run / "slurm" / "job.sbatch") == 0
    found = slurm.environment("srun")
    assert {"RANK", "MY_SECRET"}.isdisjoint(found)
    assert (found["KEY"], found["OMP_NUM_THREADS"]) == ("a;b", "3")
    assert found["TORCH_EXTENSIONS_DIR"] == f"{run}/slurm/torch_extensions"


def test_one_task_a_rank(slurm: FakeSlurm, shards: Path) -> None:
    slurm.site(cpus_per_rank=4)
    more = ("--gpus-per-node", "2", "train.micro_batch_size=4")
    run = submitted(slurm, shards, "run", *more)
    assert slurm.run(run / "slurm" / "job.sbatch") == 0
    [train] = slurm.calls("srun")
    wanted = {"--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=4", "--kill-on-bad-exit=1"}
    assert wanted <= set(train)
    assert {"--export=ALL", "--mpi=none", "--distribution=block", "--open-mode=append"} <= set(train)
    lines = (run / "slurm" / "job.sbatch").read_text().splitlines()
    assert {"#SBATCH --gpus-per-node=2", "#SBATCH --signal=B:USR1@120", "#SBATCH --requeue"} <= set(lines)
    assert (run / "slurm" / "srun-said.txt").read_text() == "srun: error: n2: task 1: Killed\n"
    assert "task 1: Killed" in slurm.out


@pytest.mark.parametrize("given", [1, 2, 3, 4])
def test_an_elastic_job_uses_the_nodes_that_fit(slurm: FakeSlurm, shards: Path, given: int) -> None:
    """16 images in micro-batches of 4 can be divided among 1, 2 and 4 ranks."""
    more = ("--elastic", "--nodes", "1-4", "train.micro_batch_size=4")
    run = submitted(slurm, shards, "run", *more)
    script = run / "slurm" / "job.sbatch"
    assert "#SBATCH --nodes=1-4" in script.read_text().splitlines()
    assert slurm.run(script, SLURM_JOB_NUM_NODES=str(given)) == 0
    [train] = slurm.calls("srun")
    used = {1: 1, 2: 2, 3: 2, 4: 4}[given]
    assert {f"--nodes={used}", f"--ntasks={used}"} <= set(train)
    assert train[-1] == "--elastic"


@pytest.mark.parametrize("given", ["", "abc", "0", "-1", "1e3", "(null)"])
def test_a_number_of_nodes_that_is_none(slurm: FakeSlurm, shards: Path, given: str) -> None:
    script = submitted(slurm, shards, "run") / "slurm" / "job.sbatch"
    assert slurm.run(script, SLURM_JOB_NUM_NODES=given) == 2
    assert f"SLURM_JOB_NUM_NODES ('{given}') must be the number of nodes; submit with sbatch" in slurm.out
    assert slurm.calls("srun") == []


@pytest.mark.parametrize(("after", "requeued"), [(0, False), (75, True), (82, False), (1, False)])
def test_what_follows_is_as_after_says(slurm: FakeSlurm, shards: Path, after: int, requeued: bool) -> None:
    slurm.set(after=str(after), **{"srun.sh": "exit 81"})
    run = submitted(slurm, shards, "run", "--requeue-limit", "3")
    assert slurm.run(run / "slurm" / "job.sbatch") == after
    [asked] = slurm.calls("python")
    assert asked[3:] == [
        "--code",
        "81",
        "--srun-stderr",
        f"{run}/slurm/srun-said.txt",
        "--requeue-limit",
        "3",
    ]
    assert slurm.calls("scontrol") == ([["requeue", "7"]] if requeued else [])


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM])
def test_a_request_to_stop_reaches_the_step_and_is_waited_for(
    slurm: FakeSlurm, shards: Path, sent: signal.Signals
) -> None:
    body = "trap 'sleep 0.3; echo saved; exit 75' USR1\necho up\nwhile :; do sleep 0.05; done\n"
    slurm.set(after="75", **{"srun.sh": body})
    run = submitted(slurm, shards, "run")
    job = slurm.start(run / "slurm" / "job.sbatch")
    wait_for(lambda: "up" in slurm.out)
    job.send_signal(sent)
    time.sleep(0.1)
    job.send_signal(sent)  # asked twice, it waits all the same
    assert job.wait(timeout=120) == 75
    assert "saved" in slurm.out
    assert slurm.calls("python")[0][4:6] == ["75", "--srun-stderr"]
    assert slurm.calls("scontrol") == [["requeue", "7"]]


def test_a_step_that_does_not_end_is_given_up_in_time(slurm: FakeSlurm, shards: Path) -> None:
    """30 s before the limit, of which 15 are left for what follows; here time runs 15 times as fast."""
    slurm.site(signal_s=30)
    slurm.set(after="75", **{"srun.sh": "trap '' USR1\necho up\nwhile :; do sleep 0.05; done\n"})
    run = submitted(slurm, shards, "run")
    script = run / "slurm" / "job.sbatch"
    text = script.read_text()
    assert "timeout 15 " in text
    script.write_text(text.replace("timeout 15 ", "timeout 1 "))
    job = slurm.start(script)
    wait_for(lambda: "up" in slurm.out)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=120) == 75
    assert slurm.calls("python")[0][4] == str(128 + signal.SIGKILL)


def test_a_cancelled_job_does_not_start_again(slurm: FakeSlurm, shards: Path) -> None:
    run = submitted(slurm, shards, "run")
    (run / "slurm" / "cancelled").touch()
    assert slurm.run(run / "slurm" / "job.sbatch") == 0
    assert slurm.calls("srun") == []


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_container_of_apptainer(slurm: FakeSlurm, shards: Path, gpus: int) -> None:
    container = {"runtime": "apptainer", "image": "/a b/our image.sif", "mounts": ["/data", "/x y:/z"]}
    slurm.site(container=container, python="/opt/python", gpus_per_node=gpus)
    (slurm.home / "bin" / "apptainer").symlink_to(slurm.home / "bin" / "python")
    run = submitted(slurm, shards, "run", "--ranks-per-node", "1")
    assert slurm.run(run / "slurm" / "job.sbatch") == 0
    nv = ["--nv"] if gpus else []
    enter = ["exec", *nv, "--bind", f"/data,/x y:/z,{run}:{run}", "/a b/our image.sif", "/opt/python", "-m"]
    [train], [after] = slurm.calls("srun"), slurm.calls("apptainer")
    at = train.index("apptainer")
    assert train[at + 1 :][: len(enter) + 2] == [*enter, "launcher", "train"]
    assert after[: len(enter) + 1] == [*enter, "launcher.slurm.epilogue"]


def test_a_container_of_pyxis(slurm: FakeSlurm, shards: Path) -> None:
    slurm.site(container={"runtime": "pyxis", "mounts": ["/data"]}, python=None, environment={"KEY": "a"})
    run = submitted(slurm, shards, "run", "--container", "nvcr.io#nvidia/pytorch:25.01 x")
    assert slurm.run(run / "slurm" / "job.sbatch") == 0
    train, after = slurm.calls("srun")
    image = ["--container-image=nvcr.io#nvidia/pytorch:25.01 x", f"--container-mounts=/data,{run}:{run}"]
    image += ["--container-env=OMP_NUM_THREADS,TORCH_EXTENSIONS_DIR,KEY"]  # which the image may have too
    image += ["--no-container-entrypoint"]
    at = train.index(image[0])
    assert train[at : at + 7] == [*image, "python3", "-m", "launcher"]
    at = after.index(image[0])
    assert after[at : at + 7] == [*image, "python3", "-m", "launcher.slurm.epilogue"]
    assert {"--overlap", "--nodes=1", "--ntasks=1", "--nodelist=n1"} <= set(after)


def test_modules_and_set_up_come_before_the_ranks(slurm: FakeSlurm, shards: Path) -> None:
    setup = 'module() { echo "module $*"; }\nexport FROM_SETUP="a b"'
    slurm.site(
        setup=setup, modules=["cuda/12 x"], gpu_directive="gres", sbatch=["--exclusive", "--comment=a b"]
    )
    run = submitted(slurm, shards, "run", "--gpus-per-node", "1")
    text = (run / "slurm" / "job.sbatch").read_text()
    assert text.index("module load 'cuda/12 x'") < text.index("FROM_SETUP") < text.index("launcher train")
    lines = text.splitlines()
    assert {"#SBATCH --gres=gpu:1", "#SBATCH --exclusive", "#SBATCH --comment='a b'"} <= set(lines)


def test_the_template_has_no_place_left_over(slurm: FakeSlurm, shards: Path) -> None:
    run = submitted(slurm, shards, "run")
    assert re.search("@[a-z_]+@", template())
    assert not re.search("@[a-z_]+@", (run / "slurm" / "job.sbatch").read_text())
    assert os.access(run / "slurm" / "job.sbatch", os.X_OK)


def wait_for(condition: object, deadline_s: float = 120) -> None:
    end = time.monotonic() + deadline_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("trained", "evaluated", "after", "status"),
    [(0, 0, 0, 0), (0, 84, 0, 84), (82, 0, 82, 82), (75, 0, 75, 75)],
)
def test_a_run_of_a_study_is_evaluated_once_it_is_trained(
    slurm: FakeSlurm, shards: Path, trained: int, evaluated: int, after: int, status: int
) -> None:
    slurm.set(
        after=str(after), **{"srun.sh": f'[[ "$*" != *" train "* ]] || exit {trained}\nexit {evaluated}'}
    )
    run = submitted(slurm, shards, "run")
    (run / "slurm" / "evaluate").write_text("--sweep-capacity\n0.5,0.0\n")
    assert slurm.run(run / "slurm" / "job.sbatch") == status
    calls = [call[call.index("launcher") + 1 :] for call in slurm.calls("srun")]
    asked = ["eval", str(run), "--sweep-capacity", "0.5,0.0"]
    assert [call[0] for call in calls] == (["train", "eval"] if trained == 0 else ["train"])
    assert trained != 0 or calls[1] == asked
    [told] = slurm.calls("python")
    assert told[3:5] == ["--code", str(trained)]  # how the training ended decides what follows
    said = run / "slurm" / "evaluate-status"
    assert said.exists() == (trained == 0)
    assert trained != 0 or said.read_text() == f"{evaluated}\n"
