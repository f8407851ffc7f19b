"""The best checkpoints of a directory, from their manifests alone."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from parallel.checkpoint.commit import annotate, committed, prune, set_latest, step_of, steps_to_keep
from parallel.checkpoint.manifest import CheckpointError, read_manifest
from parallel.checkpoint.scores import ScoreKind, Scores, named, ranking, resolved, scored, scores_of
from parallel.checkpoint.verify import problems
from tests.parallel.checkpoint.saving import PlainMasterWeights, mesh_of, save_checkpoint

KIND = ScoreKind(metric="top1", higher_is_better=True, weights="master", split="abc")


def save(
    directory: Path,
    step: int,
    values: dict[int, float | None],
    evaluated: bool = True,
    kind: ScoreKind = KIND,
) -> Path:
    """A checkpoint that knows the values until its step."""
    record: dict[str, Any] = {"state": {"evaluations": Scores(kind=kind, values=values).record}}
    record["evaluation"] = values.get(step) if evaluated else None
    return save_checkpoint(directory, step, PlainMasterWeights(step), mesh_of(), record)  # type: ignore[arg-type]


def fill(directory: Path, values: dict[int, float | None], kind: ScoreKind = KIND) -> None:
    for step in values:
        save(directory, step, {at: value for at, value in values.items() if at <= step}, kind=kind)


def steps(directory: Path) -> list[int]:
    return [step_of(path) for path in committed(directory)]


def ranked(directory: Path) -> list[int]:
    found = ranking(directory)
    return found.steps if found else []


@pytest.mark.parametrize(("higher", "order"), [(True, [20, 30, 10]), (False, [10, 20, 30])])
def test_equal_values_are_ranked_by_age_and_what_is_no_number_not_at_all(
    tmp_path: Path, higher: bool, order: list[int]
) -> None:
    kind = ScoreKind(metric="m", higher_is_better=higher, weights="ema")
    fill(tmp_path, {10: 0.5, 20: 0.7, 30: 0.7, 40: None}, kind)
    assert ranked(tmp_path) == order
    assert named(tmp_path, "best").name == f"step-{order[0]:08d}"
    assert resolved(tmp_path / "best") == named(tmp_path, "best")


def test_names(tmp_path: Path) -> None:
    fill(tmp_path, {10: 0.5, 20: 0.4})
    wanted = {"best": 10, "latest": 20, "20": 20, "step-20": 20, "step-00000020": 20}
    assert {name: step_of(named(tmp_path, name)) for name in wanted} == wanted
    for name in ("30", "step-00000030", "nothing"):
        with pytest.raises(CheckpointError, match=f"has no checkpoint {name}; it has step-00000010, step-"):
            named(tmp_path, name)
    assert resolved(tmp_path / "worst") == tmp_path / "worst"
    assert resolved(tmp_path / "none" / "best") == tmp_path / "none" / "best"


def test_without_an_evaluation_none_is_the_best(tmp_path: Path) -> None:
    save(tmp_path, 10, {})
    assert ranking(tmp_path) is None
    with pytest.raises(CheckpointError, match="has no best checkpoint: none was saved with an evaluation"):
        named(tmp_path, "best")


def test_one_that_was_saved_without_its_evaluation_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 10, {10: 0.9}, evaluated=False)
    save(tmp_path, 20, {10: 0.9, 20: 0.1})
    assert ranked(tmp_path) == [20]


def test_a_branch_that_the_run_left_does_not_count(tmp_path: Path) -> None:
    """After 30 the run goes back to 10; its new 30 is not saved, and its 20 has another value."""
    fill(tmp_path, {10: 0.5, 20: 0.9, 30: 0.8})
    set_latest(tmp_path / "step-00000010")
    assert ranked(tmp_path) == [10]
    save(tmp_path, 25, {10: 0.5, 20: 0.4, 25: 0.6})
    save(tmp_path, 40, {10: 0.5, 20: 0.4, 25: 0.6, 30: 0.7, 40: 0.3})
    assert ranked(tmp_path) == [25, 10, 40]


def test_the_newest_one_that_can_be_read_knows_the_values(tmp_path: Path) -> None:
    fill(tmp_path, {10: 0.5, 20: 0.9, 30: 0.8})
    (tmp_path / "step-00000030" / "manifest.json").write_text("{")
    assert ranked(tmp_path) == [20, 10]


@pytest.mark.parametrize(
    "record",
    [None, [], {}, {"metric": "top1"}, {**Scores(kind=KIND, values={}).record, "values": [[1], "x", None]}],
    ids=str,
)
def test_garbled_values_are_none(tmp_path: Path, record: Any) -> None:
    save(tmp_path, 10, {10: 0.5})
    annotate(tmp_path / "step-00000010", {"state": {"evaluations": record}})
    assert scores_of(read_manifest(tmp_path / "step-00000010")) is None
    assert ranking(tmp_path) is None


def test_a_record_survives_json_and_holds_no_nan() -> None:
    scores = Scores(kind=KIND, values={1: 0.1 + 0.2, 2: None})
    text = json.dumps({"state": {"evaluations": scores.record}}, allow_nan=False)
    assert scores_of(json.loads(text)) == scores
    wild = {"evaluations": {**scores.record, "values": [[1, math.inf], [2, math.nan], [3, True], [4, "0.5"]]}}
    found = scores_of({"state": wild})
    assert found is not None
    assert list(found.values.values()) == [None] * 4


def test_a_note_leaves_the_checkpoint_whole(tmp_path: Path) -> None:
    path = save(tmp_path, 10, {})
    before = read_manifest(path)
    annotate(
        path, {"evaluation": 0.75, "state": {"evaluations": Scores(kind=KIND, values={10: 0.75}).record}}
    )
    assert problems(path) == []
    assert scored(tmp_path, Scores(kind=KIND, values={10: 0.75})) == {10: 0.75}
    changed = {key for key, value in read_manifest(path).items() if value != before.get(key)}
    assert changed == {"evaluation", "state", "sha256"}


def test_pruning_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    """By hand: 50 and 60 are the last two, 40 a multiple, 10 and 30 the best."""
    fill(tmp_path, {10: 0.9, 20: 0.1, 30: 0.8, 40: 0.2, 50: 0.3, 60: 0.4})
    assert steps_to_keep([10, 20, 30, 40, 50, 60], 60, 2, 40, [10, 30, 99]) == {10, 30, 40, 50, 60}
    prune(tmp_path, 2, 40, best=[10, 30])
    assert steps(tmp_path) == [10, 30, 40, 50, 60]
    prune(tmp_path, 1, None, best=[30])
    assert steps(tmp_path) == [30, 60]
