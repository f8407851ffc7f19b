"""`checkpoint.keep_best` and `train.early_stop` in runs: killed, stopped, taken back, on other layouts."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

import launcher
from launcher.cli.program import main
from launcher.config.load import ConfigError, load_config
from launcher.preflight.disk import evaluate_run
from launcher.preflight.report import ProbeResults
from launcher.slurm.submit import is_finished
from launcher.validation.rules import check
from parallel.checkpoint.commit import annotate, committed, set_latest, step_of
from parallel.checkpoint.manifest import read_manifest
from parallel.checkpoint.scores import named
from parallel.ranks.bandwidth import RankNode
from swin_moe import load_weights
from tests.distributed import RankError, run_on_ranks
from tests.faults import Fault
from tests.faults import run as run_ranks
from tests.launcher.running import (
    CONFIG,
    command,
    commands,
    evaluations,
    overrides,
    records,
    run_alone,
    steps,
)

STEPS, KEEP = 12, 2
OPTIONS = (
    f"train.duration={STEPS} steps",
    "train.eval_every=1 steps",
    "checkpoint.every=5 steps",
    "checkpoint.keep_last=1",
    f"checkpoint.keep_best={KEEP}",
    "optim.base_lr=0.05",
)


def line(shards: Path, run: Path, *more: str) -> list[str]:
    return ["train", str(CONFIG), "--resume", "auto", *overrides(shards, run, *OPTIONS, *more)]


def kept(run: Path) -> list[int]:
    return [step_of(path) for path in committed(run / "checkpoints")]


def best_by_records(run: Path, name: str = "eval_top1", keep: int = KEEP) -> list[int]:
    """The best evaluations, as sorting all of metrics.jsonl finds them."""
    values = {r["step"]: r[name] for r in records(run) if r["step"] and name in r}
    assert len(set(values.values())) > keep, values
    return sorted(values, key=lambda step: (-values[step], step))[:keep]


def assert_the_best_are_kept(run: Path, name: str = "eval_top1") -> None:
    best = best_by_records(run, name)
    assert set(kept(run)) == {*best, STEPS}
    for step in best:
        value = next(r[name] for r in records(run) if r["step"] == step and name in r)
        assert read_manifest(run / "checkpoints" / f"step-{step:08d}")["evaluation"] == value


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, saved beside training; only read."""
    path = tmp_path_factory.mktemp("best") / "run"
    outcomes = run_on_ranks(command, 2, *line(shards, path, "parallel.ep_size=2"))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    return path


def test_the_best_and_the_last_are_kept(whole: Path) -> None:
    assert_the_best_are_kept(whole)
    summary, best = json.loads((whole / "summary.json").read_text()), best_by_records(whole)[0]
    value = next(r["eval_top1"] for r in evaluations(whole) if r["step"] == best)
    assert summary["best"] == {"step": best, "top1": value}


def test_the_best_is_evaluated_exported_and_loaded_by_its_name(whole: Path, tmp_path: Path) -> None:
    best = best_by_records(whole)[0]
    record = next(r for r in evaluations(whole) if r["step"] == best)
    evaluated = run_alone("eval", str(whole), "--checkpoint", "best")
    assert f"step-{best:08d} (step {best})" in evaluated.out
    assert f"top-1 {record['eval_top1']:.2%}" in evaluated.out
    assert f"loss {record['eval_loss']:.4f}" in evaluated.out
    out = tmp_path / "best.safetensors"
    assert main(["export", str(whole), str(out), "--checkpoint", "best"]) == 0
    place = whole / "checkpoints"
    by_step = launcher.load(place / f"step-{best:08d}")
    others = [launcher.load(out), launcher.load(place / "best")]
    others.append(launcher.load(whole))  # the newest
    load_weights(others[-1].model, place / "best")
    for name, tensor in by_step.model.state_dict().items():
        assert all(torch.equal(tensor, other.model.state_dict()[name]) for other in others), name
    assert others[1].inputs == by_step.inputs


def test_the_list_says_which_is_the_best(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "ls", str(whole), "--json"]) == 0
    rows = {row["step"]: row for row in json.loads(capsys.readouterr().out)}
    ranked = sorted(rows, key=lambda step: (-rows[step]["evaluation"]["value"], step))
    assert [rows[step]["best"] for step in ranked] == [1, 2, 3][: len(rows)]
    assert ranked[:KEEP] == best_by_records(whole)
    assert {row["evaluation"]["metric"] for row in rows.values()} == {"top1"}
    assert main(["checkpoint", "ls", str(whole)]) == 0
    (marked,) = (text for text in capsys.readouterr().out.splitlines() if ", best" in text)
    assert marked.startswith(f"step-{ranked[0]:08d}")


@pytest.mark.long
@pytest.mark.parametrize(
    ("place", "more"),
    [
        ("save", ["parallel.ep_size=2"]),  # between the evaluation and the save
        pytest.param("commit", ["parallel.ep_size=1", "parallel.zero_stage=2"], marks=pytest.mark.slow),
        pytest.param("step", ["parallel.ep_size=1", "checkpoint.asynchronous=false"], marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_the_same_are_kept(
    shards: Path, tmp_path: Path, whole: Path, place: str, more: list[str]
) -> None:
    """At the best step, or the one after it. Another layout rounds otherwise, so its own records count."""
    run, best = tmp_path / "run", best_by_records(whole)[0]
    at = best + 1 if place == "step" and best < STEPS - 1 else best
    with pytest.raises(RankError):
        run_on_ranks(partial(command, kill=(place, at)), 2, *line(shards, run, "parallel.ep_size=2"))
    outcomes = run_on_ranks(command, 2, *line(shards, run, *more))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    assert_the_best_are_kept(run)
    assert [r["step"] for r in evaluations(run)] == list(range(1, STEPS + 1))
    if place == "save":
        assert kept(run) == kept(whole)


@pytest.mark.long
def test_a_stop_at_the_best_step_is_evaluated_after_the_resume(
    shards: Path, tmp_path: Path, whole: Path
) -> None:
    """It was saved before its evaluation, which is then written into it."""
    best = best_by_records(whole)[0]
    if best == STEPS:
        pytest.skip("the best step of this machine is the last, which is never stopped at")
    here = line(shards, tmp_path / "run", "parallel.ep_size=2")
    run_ranks(2, here, Fault("SIGUSR1", step=best - 1))
    manifest = read_manifest(tmp_path / "run" / "checkpoints" / f"step-{best:08d}")
    assert (manifest["evaluation"], manifest["state"]["evaluation_is_owed"]) == (None, True)
    assert [rank.code for rank in run_ranks(2, here)] == [0, 0]
    assert kept(tmp_path / "run") == kept(whole)
    assert_the_best_are_kept(tmp_path / "run")
    manifest = read_manifest(tmp_path / "run" / "checkpoints" / f"step-{best:08d}")
    assert manifest["state"]["evaluation_is_owed"] is False


def test_the_moving_average_decides_where_there_is_one(shards: Path, tmp_path: Path) -> None:
    """It is that of another step than the best of the weights, or the test would prove nothing."""
    more = ("train.ema_decay=0.7", "train.ema_warmup=true", "checkpoint.asynchronous=false")
    run_alone(*line(shards, tmp_path / "run", *more))
    assert_the_best_are_kept(tmp_path / "run", "eval_ema_top1")
    assert best_by_records(tmp_path / "run", "eval_ema_top1") != best_by_records(tmp_path / "run")


@pytest.mark.long
def test_a_run_that_goes_back_forgets_the_best_of_the_branch_it_left(shards: Path, tmp_path: Path) -> None:
    """The first branch claims a perfect evaluation at step 8; the second never evaluates there like that."""
    run = tmp_path / "run"
    more = ("checkpoint.every=1 steps", "checkpoint.keep_last=20")
    run_alone(*line(shards, run, *more))
    directory = run / "checkpoints"
    for path in committed(directory)[7:]:
        manifest = read_manifest(path)
        values = manifest["state"]["evaluations"]["values"]
        manifest["state"]["evaluations"]["values"] = [[s, 1.0 if s == 8 else v] for s, v in values]
        own = 1.0 if step_of(path) == 8 else manifest["evaluation"]
        annotate(path, {"state": manifest["state"], "evaluation": own})
    assert best_step(run) == 8
    set_latest(directory / "step-00000005")
    run_alone(*line(shards, run, "checkpoint.every=5 steps", "train.eval_every=5 steps"))
    found = best_step(run)
    assert found != 8
    assert 8 not in kept(run)  # keep_last=1 of the second branch


def best_step(run: Path) -> int:
    return step_of(named(run / "checkpoints", "best"))


def test_prune_leaves_the_best(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_alone(*line(shards, run, "checkpoint.every=1 steps", "checkpoint.keep_last=20"))
    assert kept(run) == list(range(1, STEPS + 1))
    best = best_by_records(run, keep=3)
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1", "--keep-best", "3"]) == 0
    assert set(kept(run)) == {*best, STEPS}
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == 0  # as the run does
    assert set(kept(run)) == {*best[:KEEP], STEPS}
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1", "--keep-best", "0"]) == 0
    assert kept(run) == [STEPS]


# --- early stop: with a rate of almost nothing no evaluation is better than the first

STILL = (
    "optim.base_lr=1e-30",
    "optim.min_lr=1e-30",
    "optim.warmup_lr=1e-30",
    "optim.warmup=0 steps",
    "train.early_stop={patience: 3 evaluations}",
)


@pytest.fixture(scope="module")
def stopped(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """A run on two ranks that stops early, and its output and command."""
    path = tmp_path_factory.mktemp("early") / "run"
    here = line(shards, path, "parallel.ep_size=2", *STILL)
    outcome = run_on_ranks(command, 2, *here)[0]
    assert outcome.code == 0, outcome.err
    return path, outcome.out + outcome.err, here


def test_it_stops_after_the_patience_and_says_why(stopped: tuple[Path, str, list[str]]) -> None:
    """The first evaluation is the best; the fourth is the third without a better value."""
    run, said, _ = stopped
    assert [r["step"] for r in steps(run)] == [1, 2, 3, 4]
    assert kept(run) == [1, 2, 4]  # of equal values the earlier is better
    value = evaluations(run)[0]["eval_top1"]
    reason = (
        f"stopped early at step 4 of {STEPS}: train.early_stop: top1 has not become better for 3 evaluations "
        f"(best: {value:.6g} at step 1)"
    )
    assert reason in said
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["stopped_early"]) == (4, reason)
    end = json.loads((run / "sessions.jsonl").read_text().splitlines()[-1])
    assert (end["code"], end["reason"]) == (0, f"finished: {reason}")


def test_it_is_finished_for_whoever_asks(stopped: tuple[Path, str, list[str]]) -> None:
    run, _, here = stopped
    assert is_finished(run, load_config(run / "config.yaml"))
    outcome = run_on_ranks(command, 2, *here)[0]
    assert outcome.code == 0
    assert f"already finished (stopped early at step 4 of {STEPS}: " in outcome.out
    assert [r["step"] for r in steps(run)] == [1, 2, 3, 4]


def test_it_goes_on_where_the_patience_is_longer(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = line(shards, run, *STILL)
    later = [*first, "train.early_stop={patience: 6 steps}"]
    never = [*first, "train.early_stop=null"]
    done = run_on_ranks(commands, 1, [first, later, never])[0]
    assert [outcome.code for outcome in done] == [0, 0, 0], done[-1].err
    assert "resuming from step-00000004" in done[1].out
    assert "stopped early at step 7 of 12: " in done[1].out  # 6 steps after the best, at step 1
    assert "resuming from step-00000007" in done[2].out
    assert [r["step"] for r in steps(run)] == list(range(1, STEPS + 1))
    assert "stopped_early" not in json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize(
    "at", [("evaluate", 4), *(pytest.param(at, marks=pytest.mark.slow) for at in (("save", 4), ("step", 2)))]
)
def test_killed_and_resumed_it_stops_at_the_same_step(
    shards: Path, tmp_path: Path, stopped: tuple[Path, str, list[str]], at: tuple[str, int]
) -> None:
    here = line(shards, tmp_path / "run", "parallel.ep_size=2", *STILL)
    with pytest.raises(RankError):
        run_on_ranks(partial(command, kill=at), 2, *here)
    other = line(shards, tmp_path / "run", "train.micro_batch_size=16", *STILL)  # on one rank
    (outcome,) = run_on_ranks(command, 1, *other)
    assert outcome.code == 0, outcome.err
    assert f"stopped early at step 4 of {STEPS}" in outcome.out
    assert kept(tmp_path / "run") == kept(stopped[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["checkpoint.keep_best=-1"], "checkpoint.keep_best (-1) must be at least 0"),
        (
            ["checkpoint.keep_best=1", "train.eval_every=null"],
            "checkpoint.keep_best (1) needs train.eval_every (null)",
        ),
        (["checkpoint.keep_best=1", "data.val=null"], "checkpoint.keep_best (1) needs data.val (null)"),
        (
            ["train.early_stop={patience: 3 epochs}", "train.eval_every=null"],
            "train.early_stop.patience (3 epochs) needs train.eval_every (null)",
        ),
        (["train.early_stop={patience: 0 evaluations}"], "must be at least 1 evaluation"),
        (["train.early_stop={patience: 0 steps}"], "early_stop.patience (0 steps) must be more than nothing"),
        (["train.early_stop={patience: often}"], "train.early_stop.patience: a duration reads"),
        (
            ["train.early_stop={patience: 1 epochs, min_delta: -0.1}"],
            "early_stop.min_delta (-0.1) must be at least 0",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    shards: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        check(load_config(CONFIG, overrides(shards, tmp_path / "run", *OPTIONS[:1], *options)))
    assert message in str(error.value)


def test_the_disk_has_room_for_the_best_too(shards: Path, tmp_path: Path) -> None:
    """Room for 4: keep_last 1 + keep_best 2 + 1 fit, and keep_best 3 do not."""
    found = {}
    for keep in (2, 3):
        options = (*OPTIONS, f"checkpoint.keep_best={keep}")
        config = load_config(CONFIG, overrides(shards, tmp_path, *options))
        space = {
            "free": 4 * 2**30,
            "checkpoint": 2**30,
            "present": 0,
            "parameters": 1,
            "values": 3,
            "path": "x",
        }
        results = ProbeResults(places=[RankNode(rank=0, node="a")], values=[space], config=config)
        found[keep] = evaluate_run(results).warnings
    assert found[2] == []
    assert "checkpoint.keep_last + checkpoint.keep_best + 1 (5) are there at times" in found[3][0]
