"""`swin-moe bench serve`: on a server that runs, and on one that is started and always ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher.cli.program import main
from parallel.ranks.identity import start_time
from tests.launcher.bench.fake_server import fake_server

ROOT = Path(__file__).resolve().parents[3]
SMALL = ("--synthetic-size", "48")


def bench(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["bench", "serve", *map(str, words), *SMALL]) == code
    return capsys.readouterr()


def test_a_server_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = (200, 429, 200, 500)
    with fake_server(lambda number: statuses[number % 4]) as server:
        words = (server.url, "--concurrency", "1,2", "--requests", 8)
        found: dict[str, Any] = json.loads(bench(capsys, *words, "--json")[0])
        text, progress = bench(capsys, *words)
    assert (found["server"], found["images"]) == (server.url, "32 synthetic JPEGs of 48 x 48 pixels")
    for one, clients in zip(found["levels"], (1, 2), strict=True):
        assert (one["concurrency"], one["requests"], one["answered"]) == (clients, 8, 4)
        assert one["errors"] == {"429": 2, "500": 2}
        assert one["requests_s"] == pytest.approx(4 / one["seconds"])
        assert 0 < one["latency"]["p50_ms"] <= one["latency"]["p95_ms"] <= one["latency"]["p99_ms"]
    assert "2 x 429, 2 x 500" in text
    assert "429: reason of 429" in text
    assert "a fake of 3 classes" in progress
    assert "8/8 requests" in progress


def test_a_server_of_another_task(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(paths=["/v1/segment"]) as server:
        found = json.loads(bench(capsys, server.url, "--concurrency", 2, "--requests", 4, "--json")[0])
    assert (found["levels"][0]["answered"], found["levels"][0]["errors"]) == (4, {})


def test_a_server_that_answers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(lambda number: 503) as server:
        text, _ = bench(capsys, server.url, "--concurrency", 2, "--requests", 4, code=2)
    assert "4 x 503" in text


def test_a_model_is_served_and_measured(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = psutil.Process().children()  # of other tests
    options = ("--concurrency", "1,4", "--requests", 12, "--max-batch", 2, "--threads", 1)
    found = json.loads(bench(capsys, weights, *options, "--json")[0])
    alone, together = found["levels"]
    assert (alone["answered"], together["answered"], alone["errors"]) == (12, 12, {})
    assert alone["mean_batch"] == 1
    assert 1 <= together["mean_batch"] <= 2
    assert psutil.Process().children() == before


@pytest.mark.long
def test_a_model_that_cannot_be_served(capsys: pytest.CaptureFixture[str]) -> None:
    before = psutil.Process().children()  # of other tests
    out, error = bench(capsys, "nothing", "--concurrency", 1, code=2)
    assert out == ""
    starting, message = error.splitlines()
    assert starting == "starting swin-moe serve nothing"
    assert "the server of nothing ended before it listened, with status 2: " in message
    assert psutil.Process().children() == before


def wait_for_end(pid: int) -> None:
    """Until a process is gone, or dead and not collected by whoever inherited it."""
    deadline_s = time.monotonic() + 300
    while start_time(pid) is not None:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_no_process(weights: Path, number: signal.Signals, status: int) -> None:
    line = ["bench", "serve", str(weights), "--concurrency", "1", "--requests", "1000000", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]
        assert lines[1].startswith("http://127.0.0.1:"), lines
        [server] = psutil.Process(process.pid).children()
        process.send_signal(number)
        out, error = process.communicate()
        assert process.returncode == status, error
        assert number == signal.SIGKILL or "requests/s" in out
        wait_for_end(server.pid)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["model", "--concurrency", "64", "--requests", "10"], ["--requests (10)", "--concurrency (64)"]),
        (["http://127.0.0.1:8000", "--ema", "--max-batch", "8"], ["--ema, --max-batch", "runs already"]),
        (["http://127.0.0.1:1"], ["http://127.0.0.1:1", "no answer"]),
        (["ws://127.0.0.1:1"], ["ws://127.0.0.1:1", "http://HOST:PORT"]),
        (["model", "--files", "nothing.jpg"], ["nothing.jpg"]),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", *words]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert all(part in error for part in parts)
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--concurrency", "0"],
        ["--concurrency", "8,513"],
        ["--requests", "0"],
        ["--timeout", "nan"],
        ["--max-wait-ms", "-1"],
    ],
    ids=" ".join,
)
def test_nonsense_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "serve", "model", *words])
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err
