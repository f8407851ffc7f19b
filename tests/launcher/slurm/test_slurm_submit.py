"""From the command line to Slurm's own commands, and back to what `status` says."""

import json
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from launcher.config.load import load_config
from launcher.rundir.directory import RunDirectory
from launcher.slurm.array import read_tasks
from swin_moe.backbone.model import build_model
from swin_moe.weights import save_weights
from tests.launcher.fake_slurm import FakeSlurm
from tests.launcher.running import CONFIG, overrides
from tests.messages import assert_names


def line(shards: Path, *more: str, run: str = "run") -> list[str | Path]:
    return ["submit", CONFIG, *overrides(shards, run), *more]


def tree(directory: Path) -> list[str]:
    """Every file below a directory, but for what the fakes write."""
    own = ("calls", "sbatch.env", "bin")
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.name not in own)


def queued(*jobs: str, state: str = "RUNNING") -> str:
    """What squeue says of jobs."""
    where = "n[1-2]|None" if state == "RUNNING" else "|Priority"
    return "".join(f"{job.partition('_')[0]}|{job}|{state}|1:02|{where}\n" for job in jobs)


def finish(run: Path, steps: int = 20, **result: object) -> None:
    (run / "summary.json").write_text(json.dumps({"steps": steps, **result}))


def test_what_is_written_and_said(slurm: FakeSlurm, shards: Path) -> None:
    done = slurm.say(*line(shards, "--nodes", "2", "parallel.ep_size=2"))
    assert done.code == 0, done.err
    parts = ("job 7 ", "2 nodes x 1 rank", "expert-parallel 2 x data-parallel 1", "1 x micro-batch 8")
    assert_names(done.out.splitlines()[0], *parts)
    assert f"{slurm.home}/run/slurm/log.txt" in done.out
    names = ["config.yaml", "environment.sh", "job.sbatch", "jobs.jsonl", "submission.json"]
    assert tree(slurm.home / "run") == ["lock", "slurm", *(f"slurm/{name}" for name in names)]


def test_places_are_absolute_in_what_the_job_trains(slurm: FakeSlurm, shards: Path) -> None:
    (slurm.home / "data").symlink_to(shards)
    model = build_model(load_config(CONFIG, overrides(shards, "run")).model)
    save_weights(model, slurm.home / "weights.pth", "official")
    more = ("data.train=data/train", "data.val=file:data/val", "train.pretrained=weights.pth")
    assert slurm.say(*line(shards, *more)).code == 0
    config = load_config(slurm.home / "run" / "slurm" / "config.yaml")
    assert config.run_dir == f"{slurm.home}/run"
    assert (config.data.train, config.data.val) == (f"{slurm.home}/data/train", f"file:{slurm.home}/data/val")
    assert config.train.pretrained == f"{slurm.home}/weights.pth"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("parallel.ep_size=3",), "parallel.ep_size=2 would do"),
        (("data.train=none",), "make the shards first"),
        (("model.moe.top_k=x", "run_dirr=a"), "run_dirr: no such option; did you mean run_dir?"),
        (("train.pretrained=none.pth",), "train.pretrained (none.pth): no such file"),
        (("--nodes", "2-4"), "--elastic"),
        (("--time", "soon"), "time ('soon') must be a time limit of Slurm: 30, 30:00, 2:00:00, 3-12"),
        (("--time", "1:30"), "--time (00:01:30, which is HH:MM:SS) must be at least 00:03:00: the run"),
        (("--mem", "2.5G"), "mem ('2.5G') must be memory of a node, such as 200G"),
        (("--requeue-limit", "-1"), "requeue_limit (-1) must be at least 0"),
        (("run_dir=/proc/none",), "/proc/none"),
        (("--nodes", "3-9", "--elastic"), "on 9 nodes: "),
        (("--array", "none.txt"), "--array none.txt: No such file"),
    ],
)
def test_what_cannot_train_never_reaches_the_queue(
    slurm: FakeSlurm, shards: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = tree(slurm.home)
    done = slurm.say(*line(shards, "--nodes", "2", *arguments))
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert (slurm.calls("sbatch"), tree(slurm.home)) == ([], before)


def test_a_dry_run_prints_and_does_nothing(
    slurm: FakeSlurm, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # not even Slurm is needed
    before = tree(slurm.home)
    done = slurm.say(*line(shards, "--nodes", "2", "--dry-run"))
    assert done.code == 0
    assert done.out.startswith("#!/bin/bash\n")
    assert "#SBATCH --nodes=2\n" in done.out
    assert tree(slurm.home) == before
    done = slurm.say(*line(shards))
    assert (done.code, tree(slurm.home)) == (2, before)
    assert "no sbatch on PATH" in done.err


def test_a_refusal_of_sbatch_leaves_all_as_it_was(slurm: FakeSlurm, shards: Path) -> None:
    before = tree(slurm.home)
    slurm.set(refusal="sbatch: error: invalid partition\nsbatch: error: no\n")
    done = slurm.say(*line(shards))
    assert (done.code, done.err) == (2, "ConfigError: sbatch: error: invalid partition; sbatch: error: no\n")
    assert tree(slurm.home) == sorted([*before, "refusal"])

    (slurm.home / "refusal").unlink()
    assert slurm.say(*line(shards)).code == 0
    files = {path: path.read_bytes() for path in (slurm.home / "run" / "slurm").iterdir()}
    slurm.set(refusal="sbatch: error: no\n")
    assert slurm.say(*line(shards, "optim.base_lr=1", "--time", "5")).code == 2
    assert {path: path.read_bytes() for path in (slurm.home / "run" / "slurm").iterdir()} == files


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "COMPLETING"])
@pytest.mark.parametrize("again", ["submit", "resume"])
def test_a_run_with_a_job_is_refused(slurm: FakeSlurm, shards: Path, state: str, again: str) -> None:
    assert slurm.say(*line(shards)).code == 0
    slurm.set(queue=queued("7", state=state))
    done = slurm.say(*(line(shards) if again == "submit" else ("resume", "run")))
    assert done.code == 2
    assert f"has a job already: job 7: {state}" in done.err
    assert f"swin-moe slurm cancel {slurm.home}/run" in done.err
    assert len(slurm.calls("sbatch")) == 1
    slurm.set(queue=queued("8"))  # another's
    assert slurm.say(*line(shards)).code == 0


def hold(run: Path, pipe: Connection) -> None:
    """Train there, as far as others can see."""
    RunDirectory(run).lock(resume=True)
    pipe.send("held")
    pipe.recv()


def test_a_run_that_trains_without_slurm_is_refused(slurm: FakeSlurm, shards: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=hold, args=(slurm.home / "run", theirs))
    process.start()
    assert ours.recv() == "held"
    before = tree(slurm.home)
    done = slurm.say(*line(shards))
    assert (done.code, tree(slurm.home)) == (2, before)
    assert f"run_dir ({slurm.home}/run) is in use by " in done.err
    assert slurm.calls("sbatch") == []
    ours.send("enough")
    process.join()


def test_resume_changes_what_it_is_told_and_keeps_the_rest(slurm: FakeSlurm, shards: Path) -> None:
    more = (
        "--nodes",
        "2",
        "--mem",
        "3G",
        "--time",
        "1:00:00",
        "--dependency",
        "singleton",
        "optim.base_lr=0.5",
    )
    assert slurm.say(*line(shards, *more)).code == 0
    (slurm.home / "run" / "slurm" / "cancelled").touch()
    done = slurm.say("resume", "run", "--nodes", "1", "--requeue-limit", "9")
    assert done.code == 0, done.err
    script = (slurm.home / "run" / "slurm" / "job.sbatch").read_text()
    assert {"#SBATCH --nodes=1", "#SBATCH --mem=3G", "#SBATCH --time=01:00:00"} <= set(script.splitlines())
    assert "--requeue-limit 9" in script
    assert "singleton" not in script
    assert load_config(slurm.home / "run" / "slurm" / "config.yaml").optim.base_lr == 0.5
    assert not (slurm.home / "run" / "slurm" / "cancelled").exists()
    finish(slurm.home / "run")
    done = slurm.say("resume", "run")
    assert done.code == 2
    assert "is finished" in done.err
    finish(slurm.home / "run", steps=19)  # of a shorter run before
    assert slurm.say("resume", "run", "--dry-run").code == 0


def test_cancel(slurm: FakeSlurm, shards: Path) -> None:
    assert slurm.say(*line(shards)).code == 0
    assert "no job in the queue" in slurm.say("cancel", "run").err
    slurm.set(queue=queued("7"))
    assert "asked to save and stop" in slurm.say("cancel", "run").out
    assert (slurm.home / "run" / "slurm" / "cancelled").exists()
    assert slurm.say("cancel", "run", "--now").code == 0
    slurm.set(queue=queued("7", state="PENDING"))
    assert slurm.say("cancel", "run").out.startswith("job 7: cancelled\n")
    assert slurm.calls("scancel") == [["--batch", "--signal=USR1", "7"], ["7"], ["7"]]


def test_status_and_logs(slurm: FakeSlurm, shards: Path) -> None:
    assert "was never submitted" in slurm.say("status", "run").err
    assert slurm.say(*line(shards)).code == 0
    slurm.set(queue=queued("7", state="PENDING"))
    assert slurm.say("status", "run").out.startswith(
        "job 7: PENDING (Priority: jobs of higher priority wait before it)\n"
    )
    assert "has not started" in slurm.say("logs", "run").err
    (slurm.home / "run" / "slurm" / "log.txt").write_text("".join(f"{i}\n" for i in range(60)))
    assert slurm.say("logs", "run").out.split() == [str(i) for i in range(10, 60)]
    assert slurm.say("logs", "run", "--lines", "2").out == "58\n59\n"
    slurm.set(queue="")
    assert slurm.say("status", "run").out.startswith("job 7: not in the queue\n")
    slurm.set(accounts="COMPLETED|00:01:20\n")
    assert slurm.say("status", "run").out.startswith("job 7: COMPLETED after 00:01:20\n")
    found = json.loads(slurm.say("status", "run", "--json").out)
    assert (found["job"], found["queue"]) == ("7", None)


def test_the_state_of_a_run_is_told_without_slurm(
    slurm: FakeSlurm, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slurm.say(*line(shards)).code == 0
    monkeypatch.setenv("PATH", "/nowhere")
    done = slurm.say("status", "run")
    assert done.code == 0
    assert str(slurm.home / "run") in done.out
    assert "no squeue on PATH" in done.err


def test_following_a_log_ends_with_the_job(
    slurm: FakeSlurm, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.slurm.jobs.POLL_S", 0.01)
    monkeypatch.setattr("launcher.slurm.jobs.QUEUE_S", 0.02)
    assert slurm.say(*line(shards)).code == 0
    (slurm.home / "run" / "slurm" / "log.txt").write_text("all\n")
    assert slurm.say("logs", "run", "--follow").out == "all\n"


def test_more_nodes_than_the_partition_has(slurm: FakeSlurm, shards: Path) -> None:
    """The job would wait for ever. Without an answer of sinfo it is Slurm's to refuse."""
    slurm.set(nodes="debug*|4\nlong|2\n")
    before = tree(slurm.home)
    batch = ("train.global_batch_size=40", "--nodes", "5")
    done = slurm.say(*line(shards, *batch))
    assert (done.code, tree(slurm.home)) == (2, before)
    assert "--nodes (5): the default partition has 4 nodes; ask for fewer nodes" in done.err
    slurm.set(nodes="")
    assert slurm.say(*line(shards, *batch)).code == 0
    slurm.set(nodes="debug*|4\n")
    assert slurm.say(*line(shards, "--nodes", "2", run="other")).code == 0


def test_further_options_of_sbatch(slurm: FakeSlurm, shards: Path) -> None:
    slurm.site(sbatch=["--exclusive"])
    done = slurm.say(*line(shards, "--sbatch=--gres=tmpdisk:100", "--sbatch=--exclusive"))
    assert done.code == 0, done.err
    lines = (slurm.home / "run" / "slurm" / "job.sbatch").read_text().splitlines()
    assert lines.count("#SBATCH --exclusive") == lines.count("#SBATCH --gres=tmpdisk:100") == 1
    assert slurm.say("resume", "run", "--sbatch=--nice").code == 0
    lines = (slurm.home / "run" / "slurm" / "job.sbatch").read_text().splitlines()
    assert {"#SBATCH --exclusive", "#SBATCH --gres=tmpdisk:100", "#SBATCH --nice"} <= set(lines)
    assert "must be a long option" in slurm.say(*line(shards, "--sbatch=x", run="b")).err


def test_the_runs_below_a_directory(slurm: FakeSlurm, shards: Path) -> None:
    assert slurm.say("list", ".").out == ".: no run here was submitted to Slurm\n"
    assert slurm.say(*line(shards)).code == 0
    assert slurm.say(*line(shards, "--array", "seed=1,2 optim.base_lr=1e-3,2e-3", run="grid")).code == 0
    slurm.set(queue=queued("7", state="PENDING"))
    head, *rows = [row.split("  ") for row in slurm.say("list", ".").out.splitlines()]
    assert head[0] == "run"
    assert [[text.strip() for text in row if text][:4] for row in rows] == [
        ["grid", "7", "PENDING (Priority)", "4 not started"],
        ["run", "7", "PENDING (Priority)", "not started"],
    ]


def test_a_grid_is_every_value_with_every_other() -> None:
    assert read_tasks(Path("seed=1,2 optim.base_lr=1e-3,2e-3")) == (
        ("seed=1", "optim.base_lr=1e-3"),
        ("seed=1", "optim.base_lr=2e-3"),
        ("seed=2", "optim.base_lr=1e-3"),
        ("seed=2", "optim.base_lr=2e-3"),
    )


TASKS = "# a sweep\n\noptim.base_lr=1e-3\noptim.base_lr=2e-3 'optim.betas=[0.8, 0.9]'  # two\nseed=3\n"


def test_an_array_is_a_run_directory_a_task(slurm: FakeSlurm, shards: Path) -> None:
    slurm.set(**{"tasks.txt": TASKS})
    done = slurm.say(*line(shards, "--array", "tasks.txt", "--array-limit", "2"))
    assert done.code == 0, done.err
    assert done.out.startswith("job 7 submitted: array of 3 tasks, each 1 node x 1 rank; ")
    run = slurm.home / "run"
    configs = [load_config(run / f"00{i}" / "slurm" / "config.yaml") for i in range(3)]
    assert [config.optim.base_lr for config in configs] == [1e-3, 2e-3, 1e-2]
    assert (configs[1].optim.betas, configs[2].seed) == ((0.8, 0.9), 3)
    assert [config.run_dir for config in configs] == [f"{run}/00{i}" for i in range(3)]
    script = run / "slurm" / "job.sbatch"
    lines = script.read_text().splitlines()
    assert {"#SBATCH --array=0-2%2", f"#SBATCH --output={run}/%3a/slurm/log.txt"} <= set(lines)

    slurm.set(after="75")
    assert slurm.run(script, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2") == 75
    [train], [after] = slurm.calls("srun"), slurm.calls("python")
    assert train[-3] == f"{run}/002/slurm/config.yaml"
    assert after[2] == f"{run}/002"
    assert slurm.calls("scontrol") == [["requeue", "7_2"]]
    assert slurm.environment("srun")["TORCH_EXTENSIONS_DIR"] == f"{run}/002/slurm/torch_extensions"


def test_the_life_of_an_array(slurm: FakeSlurm, shards: Path) -> None:
    slurm.set(**{"tasks.txt": "".join(f"seed={i}\n" for i in range(6))})
    assert slurm.say(*line(shards, "--array", "tasks.txt")).code == 0
    run = slurm.home / "run"
    slurm.set(queue=queued("7_3") + queued("7_4", state="PENDING"))
    for task in (0, 2, 5):
        finish(run / f"00{task}", primary="top1", top1=0.375, loss=2.1843)
    text = slurm.say("status", "run").out
    assert [line.count("  top1 0.375, loss 2.184  ") for line in text.splitlines()[1:]] == [1, 0, 1, 0, 0, 1]
    rows = [row.split() for row in slurm.say("status", "run").out.splitlines()]
    assert [row[:2] for row in rows[1:]] == [[f"00{i}", f"7_{i}"] for i in range(6)]
    assert (rows[4][2], rows[5][2:4]) == ("RUNNING", ["PENDING", "(Priority)"])
    assert slurm.say("resume", "run").code == 2

    assert slurm.say("cancel", "run").code == 0
    assert slurm.calls("scancel") == [["--batch", "--signal=USR1", "7_3"], ["7_4"]]
    assert (run / "003" / "slurm" / "cancelled").exists()
    slurm.set(queue="")
    done = slurm.say("resume", "run", "--array-limit", "1")
    assert done.code == 0, done.err
    assert "#SBATCH --array=1,3-4%1" in (run / "slurm" / "job.sbatch").read_text().splitlines()
    assert not (run / "003" / "slurm" / "cancelled").exists()
    assert "--task" in slurm.say("logs", "run").err
    (run / "003" / "slurm" / "log.txt").write_text("three\n")
    assert slurm.say("logs", "run", "--task", "3").out == "three\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "seed=1\nrun_dir=x\n", "task 1 (run_dir=x): run_dir cannot be overridden"),
        ("t.txt", "seed=x\nsed=1\n", "task 1 (sed=1): "),
        ("t.txt", "seed=x\nsed=1\n", "task 0 (seed=x): "),
        ("t.txt", "parallel.ep_size=3\n", "task 0 (parallel.ep_size=3): "),
        ("t.txt", "# none\n", "holds no task"),
        ("t.txt", "'a\n", "No closing quotation"),
        ("t.yaml", "a: 1\n", "must hold a list"),
        ("t.yaml", "[1]\n", "a task must be a list of overrides or a mapping"),
    ],
)
def test_a_bad_task_refuses_the_array(
    slurm: FakeSlurm, shards: Path, name: str, text: str, message: str
) -> None:
    slurm.set(**{name: text})
    done = slurm.say(*line(shards, "--array", name))
    assert done.code == 2
    assert message in done.err
    assert not (slurm.home / "run").exists()


def test_tasks_in_yaml(slurm: FakeSlurm, shards: Path) -> None:
    slurm.set(**{"t.yaml": "- [seed=1, optim.base_lr=2e-3]\n- {seed: 2, optim.betas: [0.5, 0.6]}\n"})
    assert slurm.say(*line(shards, "--array", "t.yaml")).code == 0
    configs = [load_config(slurm.home / "run" / f"00{i}" / "slurm" / "config.yaml") for i in range(2)]
    assert [config.seed for config in configs] == [1, 2]
    assert (configs[0].optim.base_lr, configs[1].optim.betas) == (2e-3, (0.5, 0.6))
