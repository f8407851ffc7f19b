"""`swin-moe study run`: what runs, what is left alone, what becomes of a failure; and one real study."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.cli.program import main
from tests.launcher.running import CONFIG, TINY
from tests.launcher.study.fake_trials import FakeStudy, study

__all__ = ["study"]  # a fixture
LRS = ["base_lr=0.1", "base_lr=0.2", "base_lr=0.3"]


def test_every_trial_is_trained_and_evaluated_and_not_again(study: FakeStudy) -> None:
    study.write()
    done = study.run()
    assert done.code == 0, done.err
    assert study.calls() == [(command, lr) for lr in LRS for command in ("train", "eval")]
    assert study.states() == dict.fromkeys(LRS, ("finished", ""))
    assert "3 trials of 1 rank, 1 at a time: 15 steps, 240 images" in done.out  # 3 x 5 steps of 16 images
    assert "s: top-1 50.00%, loss 1.2500, 100 images/s; 2 to go" in done.out
    again = study.run()
    assert (again.code, len(study.calls())) == (0, 6)
    assert "3 trials in" in again.out
    assert "3 finished" in again.out


def test_the_sweep_and_the_threads_of_a_trial(study: FakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("launcher.study.run.run.threads_per_rank", lambda ranks: 100 // ranks)
    study.write("axes: {model.moe.top_k: [2]}\ninclude: [{model.moe: null}]\nnproc: 2")
    assert study.run("--jobs", "2").code == 0
    calls = [json.loads(line) for line in (study.directory / "calls").read_text().splitlines()]
    options = {(command, name): given for command, name, _, given in calls}
    sweep = ["--nproc", "2", "--sweep-capacity", "0.5,0.0", "--sweep-top-k", "1"]
    assert options["eval", "top_k=2,seed=0"] == sweep
    assert options["eval", "moe=none,seed=0"] == ["--nproc", "2"]
    assert options["train", "moe=none,seed=0"] == ["--nproc", "2", "--resume", "auto"]
    assert {threads for _, _, threads, _ in calls} == {"25"}  # 100 among 2 trials of 2 ranks


def test_a_trial_that_fails_is_told_and_the_others_finish(study: FakeStudy) -> None:
    study.write()
    study.rule("fail-train", "0.2", "83|loss is nan")
    done = study.run()
    assert done.code == 83
    assert "base_lr=0.2,seed=0: DivergedError: loss is nan" in done.out
    assert study.states()["base_lr=0.2"] == ("failed", "DivergedError: loss is nan")
    assert [study.states()[lr][0] for lr in LRS] == ["finished", "failed", "finished"]
    assert ("eval", "base_lr=0.2") not in study.calls()

    before = len(study.calls())
    assert study.run("--skip-failed").code == 0
    assert len(study.calls()) == before
    study.rule("fail-train")
    assert study.run().code == 0
    assert study.calls()[before:] == [("train", "base_lr=0.2"), ("eval", "base_lr=0.2")]


def test_an_evaluation_that_fails_is_done_again_without_training(study: FakeStudy) -> None:
    study.write()
    study.rule("fail-eval", "0.1", "84|no memory")
    assert study.run().code == 84
    assert study.states()["base_lr=0.1"] == ("failed", "DivergedError: no memory")
    study.rule("fail-eval")
    assert study.run().code == 0
    assert study.calls()[-1] == ("eval", "base_lr=0.1")
    assert study.calls().count(("train", "base_lr=0.1")) == 1


def test_other_ways_of_evaluation_are_evaluated_alone(study: FakeStudy) -> None:
    study.write()
    assert study.run().code == 0
    study.write("axes: {optim.base_lr: [0.1]}\nevaluate: {capacity_factors: [0], top_k: [1]}")
    assert study.run().code == 0
    assert len(study.calls()) == 6  # what there is holds it
    study.write("axes: {optim.base_lr: [0.1]}\nevaluate: {capacity_factors: [2], top_k: [1]}")
    assert study.run().code == 0
    assert study.calls()[6:] == [("eval", "base_lr=0.1")]


def test_trials_may_be_added_and_not_changed(study: FakeStudy) -> None:
    study.write("axes: {optim.base_lr: [0.1]}")
    assert study.run().code == 0
    study.write("axes: {optim.base_lr: [0.1, 0.2]}")
    assert study.run().code == 0
    assert study.calls()[2:] == [("train", "base_lr=0.2"), ("eval", "base_lr=0.2")]
    study.write("axes: {optim.base_lr: [0.1, 0.2, 0.3]}", **{"optim.max_grad_norm": 7.0})
    refused = study.run()
    assert refused.code == 2
    assert "base_lr=0.1,seed=0; base_lr=0.2,seed=0: optim.max_grad_norm is 7.0 now" in refused.err
    assert "begun with 5.0" in refused.err
    assert "base_lr=0.3" not in refused.err
    assert len(study.calls()) == 4


def test_only_some_trials(study: FakeStudy) -> None:
    study.write("seeds: [0, 1]\naxes: {optim.base_lr: [0.1, 0.2]}")
    assert study.run("--only", "base_lr=0.2,*").code == 0
    assert study.calls() == [("train", "base_lr=0.2"), ("eval", "base_lr=0.2")] * 2
    refused = study.run("--only", "base_lr=9")
    assert (refused.code, "--only (base_lr=9): no such trial" in refused.err) == (2, True)


def test_a_request_to_stop_saves_the_trial_and_starts_no_other(study: FakeStudy) -> None:
    study.write()
    study.rule("slow-train", "0.2")

    def stop() -> None:
        while not (study.directory / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    assert study.run().code == 75
    assert [study.states()[lr][0] for lr in LRS] == ["finished", "stopped", "waiting"]
    assert "saved at step 3" in study.states()["base_lr=0.2"][1]
    study.rule("slow-train")
    assert study.run().code == 0
    assert study.calls()[3:] == [("train", lr) if i == 0 else ("eval", lr) for lr in LRS[1:] for i in (0, 1)]


def test_a_second_study_run_is_refused(study: FakeStudy) -> None:
    study.write()
    code = "import sys; from pathlib import Path; from launcher.rundir.run_lock import RunLock\n"
    code += "RunLock(Path(sys.argv[1])).take(); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(study.directory / "lock")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        refused = study.run()
        holder.communicate()
    assert refused.code == 2
    assert f"study_dir ({study.directory}) is in use by" in refused.err
    assert study.calls() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: {model.moe.top_k: [1, 9]}", "top_k=9,seed=0: model.moe.top_k (9) must lie in 1..model.moe."),
        ("axes: {model.moe.top: [1]}", "model.moe.top: no such option; did you mean model.moe.top_k?"),
        ("axes: {parallel.ep_size: [1, 3]}", "ep_size=3,seed=0: parallel.ep_size (3)"),
        ("evaluate: {top_k: [1, 9]}", "seed=0: evaluate.top_k (9) must lie in 1..model.moe.num_experts (8)"),
        (
            "axes: {model.moe.capacity_factor: [1, 2]}\n"
            "overrides: {model.moe.router: soft, model.moe.top_k: 1}",
            "are the same run twice, as model.moe.capacity_factor does nothing here",
        ),
        (
            "axes: {model.moe.batch_prioritized: [true, false]}\noverrides: {model.moe.capacity_factor: 0}\n"
            "evaluate: {capacity_factors: [0]}",
            "are the same run twice, as model.moe.batch_prioritized does nothing here",
        ),
        ("axes: {data.train: [/none]}", "/none: no such directory"),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_trial(study: FakeStudy, text: str, message: str) -> None:
    more, _, rest = text.partition("\noverrides: {")
    own, _, after = rest.partition("}")
    overrides = dict(item.split(": ") for item in own.split(", ")) if own else {}
    study.write(more + after, **overrides)
    refused = study.run()
    assert (refused.code, study.calls()) == (2, [])
    assert message in refused.err
    assert not (study.directory / "study.json").exists()


def test_an_order_of_service_that_matters_in_evaluation_alone_is_a_warning(study: FakeStudy) -> None:
    axes = "axes: {model.moe.batch_prioritized: [true, false]}"
    study.write(axes, **{"model.moe.capacity_factor": 0})
    done = study.run("--dry-run")
    assert done.code == 0
    assert (
        "train the same model, as model.moe.batch_prioritized does nothing here; only their eval" in done.out
    )


def test_a_dry_run_writes_nothing_and_tells_what_it_could_not_check(study: FakeStudy) -> None:
    study.write(**{"data.val": "/none"})
    done = study.run("--dry-run")
    assert done.code == 0, done.err
    assert "not checked: data.val: /none: no such directory" in done.out
    assert list(study.directory.iterdir()) == []
    assert study.run().code == 2


def test_options_of_slurm_and_of_here_are_kept_apart(study: FakeStudy) -> None:
    study.write()
    without, both = study.run("--nodes", "2"), study.run("--slurm", "--jobs", "2")
    assert (without.code, both.code, study.calls()) == (2, 2, [])
    assert "--nodes (2) is for --slurm: add --slurm" in without.err
    assert "--jobs (2) is not for --slurm: leave it out" in both.err


def test_status_of_what_is_no_study(study: FakeStudy, tmp_path: Path) -> None:
    said = study.say("status", str(tmp_path))
    assert (said.code, "`swin-moe study run FILE.yaml` writes it" in said.err) == (2, True)


@pytest.mark.long
def test_a_real_study(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One trial through the real commands: three steps, four combinations of evaluation."""
    options = dict(item.split("=", 1) for item in TINY if item != "data.augment={}")
    options |= {"data.train": f"{shards}/train", "data.val": f"{shards}/val", "train.duration": "3 steps"}
    lines = "".join(f"  {name}: {value}\n" for name, value in options.items())
    file = tmp_path / "real.yaml"
    file.write_text(
        f"study_dir: {tmp_path}/real\nconfig: {CONFIG}\noverrides:\n{lines}"
        "axes: {model.moe.capacity_factor: [0.5]}\nevaluate: {capacity_factors: [0.5, 0], top_k: [1, 2]}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(CONFIG.parents[1]))
    assert main(["study", "run", str(file)]) == 0, capsys.readouterr()
    run = tmp_path / "real" / "cells" / "capacity_factor=0.5,seed=0"
    sessions = [json.loads(line)["event"] for line in (run / "sessions.jsonl").read_text().splitlines()]
    assert sessions == ["start", "end"]
    rows = json.loads((run / "eval" / "step-00000003" / "sweep.json").read_text())["rows"]
    assert [(row["top_k"], row["capacity_factor"]) for row in rows] == [(1, 0.5), (1, 0), (2, 0.5), (2, 0)]
    capsys.readouterr()
    assert main(["study", "status", str(tmp_path / "real")]) == 0
    summary = json.loads((run / "summary.json").read_text())
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[:3] == ["capacity_factor=0.5,seed=0", "finished", "3/3"]
    assert line[4:] == [f"{summary['top1']:.2%}", f"{summary['loss']:.4f}"]
