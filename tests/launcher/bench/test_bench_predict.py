"""`swin-moe bench predict`: models take turns, every call is timed, and what follows is worked by hand."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launcher.bench.images import made
from launcher.bench.in_turns import WARM_UP, measure, of_times
from launcher.bench.measurable import Measurable, of_predictor
from launcher.cli.program import main
from launcher.deploy.artifact import open_predictor
from launcher.deploy.predictor import Predictor
from tests.recorded import RUNS


def test_ratios_rates_and_threads_by_hand() -> None:
    # decoding 8 images takes 60 ms, the models 20 and 5 ms (medians); their means are 25 and 5 ms
    slow, quick = [(0.06, 0.02), (0.06, 0.02), (0.06, 0.035)], [(0.06, 0.005)] * 3
    first, second = of_times(["slow", "quick"], 8, [slow, quick])
    assert (first.ratio, second.ratio) == (1, pytest.approx(0.25))
    assert (first.img_s, second.img_s) == (pytest.approx(320), pytest.approx(1600))
    assert first.decode_img_s == pytest.approx(8 / 0.06)
    assert (first.decode_threads, second.decode_threads) == (3, 12)  # 60 / 25 = 2.4, 60 / 5
    assert (first.both.p50_ms, first.both.mean_ms) == (pytest.approx(80), pytest.approx(85))
    assert second.record()["run"]["p99_ms"] == pytest.approx(5)


def logged(predictor: Predictor, name: str, calls: list[tuple[str, int]], delay_s: float) -> Measurable:
    def program(images: Tensor) -> Sequence[Tensor]:
        calls.append((name, len(images)))
        time.sleep(delay_s)
        return predictor.program(images)

    return of_predictor(replace(predictor, source=name, program=program), "fp32")


def test_models_take_turns_and_get_the_same_images(weights: Path) -> None:
    calls: list[tuple[str, int]] = []
    opened, progress = open_predictor(weights), []
    models = [logged(opened, "a", calls, 0.0), logged(opened, "b", calls, 0.03)]
    rows = measure(models, made(3, 40), [1, 4], 5, lambda *done: progress.append(done))
    each = WARM_UP + 5
    assert calls == [("a", 1), ("b", 1)] * each + [("a", 4), ("b", 4)] * each
    assert progress == [(number + 1, 4 * each) for number in range(4 * each)]
    assert [(row.model, row.batch, row.run.calls) for row in rows] == [
        ("a", 1, 5),
        ("b", 1, 5),
        ("a", 4, 5),
        ("b", 4, 5),
    ]
    for row in rows:
        assert row.run.p50_ms >= (30 if row.model == "b" else 0)
        assert row.both.p50_ms > row.run.p50_ms
        assert row.decode.p50_ms > 0


def bench(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["bench", "predict", *map(str, words)]) == 0
    return capsys.readouterr()


def test_a_run_beside_an_artifact(weights: Path, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (weights, artifact, "--batch", "1,3", "--rounds", 2, "--synthetic-size", 48)
    found: dict[str, Any] = json.loads(bench(capsys, *words, "--precision", "bf16", "--json")[0])
    assert [(row["model"], row["batch"], row["program"]) for row in found["rows"]] == [
        (str(weights), 1, "eager bf16 cpu"),
        (str(artifact), 1, "safetensors fp32 cpu"),
        (str(weights), 3, "eager bf16 cpu"),
        (str(artifact), 3, "safetensors fp32 cpu"),
    ]
    assert (found["rounds"], found["images"]) == (2, "32 synthetic JPEGs of 48 x 48 pixels")
    assert found["machine"]["cores"] >= 1
    for first, second in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        assert first["ratio"] == 1
        assert second["ratio"] == pytest.approx(second["run"]["p50_ms"] / first["run"]["p50_ms"])
        assert first["img_s"] == pytest.approx(1e3 * first["batch"] / first["run"]["mean_ms"])
    text, progress = bench(capsys, *words)
    assert "p99 of fewer than 100 calls" in text
    assert [line.split()[:5] for line in text.splitlines()[2:6:2]] == [
        [str(weights), "eager", "fp32", "cpu", batch] for batch in ("1", "3")
    ]
    assert "20/20 calls" in progress


def test_a_model_of_another_task(capsys: pytest.CaptureFixture[str]) -> None:
    """As `predict` runs it: masked image modeling has no classifier."""
    words = (RUNS / "simmim_stage1", "--batch", "1,4", "--rounds", 1, "--synthetic-size", 20)
    rows = json.loads(bench(capsys, *words, "--json")[0])["rows"]
    assert [(row["batch"], row["program"]) for row in rows] == [(1, "eager fp32 cpu"), (4, "eager fp32 cpu")]
    assert all(row["run"]["p50_ms"] > 0 and row["decode"]["p50_ms"] > 0 for row in rows)


def test_threads_of_the_model(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        out, _ = bench(capsys, weights, "--batch", 1, "--rounds", 1, "--threads", 1, "--json")
        assert torch.get_num_threads() == json.loads(out)["threads"] == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "nothing"),
        (["WEIGHTS", "nothing"], "nothing"),
        (["ARTIFACT", "--precision", "bf16"], "precision (bf16)"),
        (["WEIGHTS", "--files", "nothing.jpg"], "nothing.jpg"),
        (["WEIGHTS", "--files", "damaged.jpg"], "damaged.jpg"),
    ],
)
def test_a_mistake_is_one_line(
    weights: Path, artifact: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("damaged.jpg").write_bytes(b"<html>404</html>")
    places = {"WEIGHTS": str(weights), "ARTIFACT": str(artifact)}
    assert main(["bench", "predict", *(places.get(word, word) for word in words)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--batch", "1,0"],
        ["--batch", "8,8"],
        ["--batch", ""],
        ["--rounds", "0"],
        ["--files", "a.jpg", "--synthetic-size", "9"],
    ],
    ids=" ".join,
)
def test_nonsense_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "predict", "model", *words])
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err
