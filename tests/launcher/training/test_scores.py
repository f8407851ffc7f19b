"""Which checkpoints are kept as the best and when training stops, against the definitions written out."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from launcher.config.schema import EarlyStopConfig
from launcher.training.scores import EarlyStop, ScoreBoard
from parallel.checkpoint.scores import ScoreKind, Scores

UP = ScoreKind(metric="top1", higher_is_better=True, weights="master")
DOWN = ScoreKind(metric="loss", higher_is_better=False, weights="master")


def board(keep_best: int = 2, kind: ScoreKind = UP, stop: EarlyStop | None = None) -> ScoreBoard:
    return ScoreBoard(kind, keep_best=keep_best, early_stop=stop)


def evaluate(one: ScoreBoard, step: int, value: Any, fails: bool = False) -> bool:
    """As the trainer does: an evaluation, and a save if it is among the best."""
    one.add(step, {one.kind.metric: value})
    if is_best := one.is_among_the_best(step):
        one.saves(step)
        if fails:
            one.failed(step)
    return is_best


@pytest.mark.parametrize("kind", [UP, DOWN])
@pytest.mark.parametrize("keep", [1, 3])
def test_the_best_of_any_series_are_those_of_the_sorted_series(kind: ScoreKind, keep: int) -> None:
    draw = random.Random(0)
    for _ in range(50):
        values = {step: draw.choice([0.1, 0.2, 0.3, 0.4, float("nan")]) for step in range(1, 15)}
        one = board(keep, kind)
        for step, value in values.items():
            evaluate(one, step, value)
        numbers = [(step, value) for step, value in values.items() if value == value]
        wanted = sorted(numbers, key=lambda item: (-item[1] if kind.higher_is_better else item[1], item[0]))
        assert one.best == [step for step, _ in wanted[:keep]]


def test_an_equal_value_does_not_replace_the_earlier_one() -> None:
    one = board(1)
    assert [evaluate(one, step, value) for step, value in ((1, 0.5), (2, 0.5), (3, 0.6))] == [
        True,
        False,
        True,
    ]


def test_a_failed_save_lets_the_one_before_stay() -> None:
    one = board(1)
    evaluate(one, 1, 0.5)
    evaluate(one, 2, 0.9, fails=True)
    assert one.best == [1]
    assert evaluate(one, 3, 0.6)
    assert one.best == [3]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.9", True])
def test_what_is_no_number_is_never_the_best(value: Any) -> None:
    one = board()
    assert not evaluate(one, 1, value)
    assert one.value_of(1) is None
    assert not evaluate(board(0), 1, 0.5)


def test_the_evaluation_before_the_first_step_decides_nothing() -> None:
    one = board()
    assert not evaluate(one, 0, 0.9)
    assert dict(one.scores.values) == {}


def test_a_resumed_board_goes_on_from_what_is_there() -> None:
    """Of the best two, 10 and 30, somebody deleted 10: the next one takes its place whatever its value."""
    one = board()
    assert one.load(Scores(kind=UP, values={10: 0.9, 20: 0.1, 30: 0.5}), {30: 0.5})
    assert one.best == [30]
    assert evaluate(one, 40, 0.2)
    assert one.best == [30, 40]
    other = board(kind=DOWN)
    assert not other.load(Scores(kind=UP, values={10: 0.9}), {10: 0.9})
    assert other.best == []
    assert board().load(None, {})


def lightnings(values: Sequence[float], patience: int, min_delta: float, higher: bool) -> int | None:
    """The index at which Lightning's EarlyStopping stops: `monitor_op(current - min_delta, best)`."""
    best, waited = float("-inf") if higher else float("inf"), 0
    for i, value in enumerate(values):
        if value - min_delta > best if higher else value + min_delta < best:
            best, waited = value, 0
        else:
            waited += 1
            if waited >= patience:
                return i
    return None


@pytest.mark.parametrize("kind", [UP, DOWN])
@pytest.mark.parametrize("min_delta", [0.0, 0.125])
def test_it_stops_where_lightning_does(kind: ScoreKind, min_delta: float) -> None:
    draw, stops = random.Random(1), 0
    for patience in (1, 2, 4):
        rule = EarlyStop.of(
            EarlyStopConfig(patience=f"{patience} evaluations", min_delta=min_delta), lambda text: 0
        )
        for _ in range(40):
            values = [draw.randrange(8) / 8 for _ in range(12)]
            one = board(kind=kind, stop=rule)
            found = None
            for i, value in enumerate(values):
                one.add(10 * (i + 1), {kind.metric: value})
                if one.stop_reason:
                    found = i
                    break
            assert found == lightnings(values, patience, min_delta, kind.higher_is_better)
            stops += found is not None
    assert stops > 20


def test_a_patience_in_steps_counts_from_the_best_value_by_hand() -> None:
    """Better at 10 and 20; 40 is 20 steps after the best and 50 is 30."""
    rule = EarlyStop.of(EarlyStopConfig(patience="30 steps"), lambda text: int(text.split()[0]))
    one = board(stop=rule)
    for step, value in ((10, 0.1), (20, 0.3), (30, 0.2), (40, 0.3)):
        one.add(step, {"top1": value})
        assert one.stop_reason is None
    one.add(50, {"top1": 0.1})
    assert one.stop_reason == (
        "train.early_stop: top1 has not become better for 30 steps (best: 0.3 at step 20)"
    )


def test_values_that_are_no_numbers_stop_too() -> None:
    rule = EarlyStop.of(EarlyStopConfig(patience="2 evaluations", min_delta=0.1), lambda text: 0)
    one = board(stop=rule)
    for step in (1, 2):
        one.add(step, {"top1": float("nan")})
    assert one.stop_reason == (
        "train.early_stop: top1 has not become better by more than 0.1 for 2 evaluations (best: no number)"
    )
