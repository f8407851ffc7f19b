"""The runner of the first checks on a GPU: each check on its own, with a deadline; the page of results."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
TOY = """
import os, subprocess, sys, time
import gpu_run

def wrong(place):
    from gpu_checks.place import close
    import torch
    yield close("half", torch.tensor([0.5]), torch.tensor([1.0]), bound=0.1)
    yield close("no number", torch.tensor([float("nan")]), torch.tensor([1.0]), bound=0.1)
    yield close("equal", torch.tensor([1.0]), torch.tensor([1.0]), bound=0.1)

def raises(place):
    yield {"what": "before", "ok": True}
    raise RuntimeError("an illegal | access")

def dies(place):
    yield {"what": "before", "ok": True}
    os.abort()

def hangs(place):
    child = subprocess.Popen(["sleep", "4321.5"])
    yield {"what": "started", "ok": None, "pid": child.pid}
    time.sleep(1000)

def good(place):
    from gpu_checks.place import row
    yield row("two and two", ok=2 + 2 == 4, ms=12345.678)
    yield row("a figure", share=0.123456)

if __name__ == "__main__":
    names = [("wrong", 60), ("raises", 60), ("dies", 60), ("hangs", 6)]
    parts = [gpu_run.CheckPart("toy", name, seconds) for name, seconds in names]
    gpu_run.PARTS = (*parts, gpu_run.CheckPart("toy", "good", 60, timed=True))
    sys.exit(gpu_run.main())
"""
MARKS = "<!-- gpu_run: begin -->\nold\n<!-- gpu_run: end -->\n"


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    (folder / "toy.py").write_text(textwrap.dedent(TOY))
    paths = os.pathsep.join([str(BENCHMARKS), str(folder)])
    return subprocess.run(
        [sys.executable, str(folder / "toy.py"), "--device", "cpu", "--out", str(folder / "out"), *argv],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("gpu-run")
    (folder / "page.md").write_text(f"# Before\n{MARKS}after\n")
    result = run(folder, "--budget", "300", "--jobs", "2", "--page", str(folder / "page.md"))
    return folder, result


def rows(folder: Path, check: str) -> list[dict[str, Any]]:
    lines = (folder / "out" / "results.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["check"] == f"toy.{check}"]


@pytest.mark.long
def test_each_check_ends_on_its_own(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, result = ran
    assert result.returncode == 1, result.stdout + result.stderr
    endings = {
        name: rows(folder, name)[-1]["status"] for name in ("wrong", "raises", "dies", "hangs", "good")
    }
    assert endings == {
        "wrong": "done",
        "raises": "failed",
        "dies": "failed",
        "hangs": "deadline",
        "good": "done",
    }
    assert rows(folder, "raises")[-1]["error"] == "RuntimeError: an illegal | access"
    assert rows(folder, "dies")[-1]["error"] == "exit status -6"
    assert [row["what"] for row in rows(folder, "dies")[:-1]] == ["before"]  # what was known is not lost
    assert "5 checks failed" not in result.stdout
    assert "4 checks failed: toy.dies, toy.hangs, toy.raises, toy.wrong" in result.stdout


def test_what_the_budget_has_no_time_for_is_not_reached(runner: Any, tmp_path: Path) -> None:
    assert runner.main(["--device", "cpu", "--out", str(tmp_path / "out"), "--budget", "0"]) == 0
    assert [rows(tmp_path, name) for name in ("wrong", "good")] == [
        [{"check": f"toy.{name}", "status": "not reached"}] for name in ("wrong", "good")
    ]


@pytest.mark.long
def test_what_a_check_started_ends_with_it(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    (child,) = (row["pid"] for row in rows(folder, "hangs") if "pid" in row)
    state = Path(f"/proc/{child}/stat")
    assert not list((folder / "out").glob("*.scratch"))
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.long
def test_a_not_a_number_is_wrong(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = ran
    verdicts = {row["what"]: row["ok"] for row in rows(folder, "wrong") if "what" in row}
    assert verdicts == {"half": False, "no number": False, "equal": True}


@pytest.mark.long
def test_the_page_keeps_what_stands_around_the_results(
    ran: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    page = (ran[0] / "page.md").read_text()
    assert page.startswith("# Before\n<!-- gpu_run: begin -->\n| check |")
    assert page.endswith("<!-- gpu_run: end -->\nafter\n")
    assert "old" not in page
    assert "| two and two | 12,346 | yes |" in page
    assert "| a figure | 0.1235 |" in page
    assert "an illegal \\| access" in page
    assert "### What was wrong" in page


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the runner with the toy checks, in this process: nothing is started."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = import_module("gpu_run")
    parts = [module.CheckPart("toy", name, 60) for name in ("wrong", "raises", "dies", "hangs", "good")]
    monkeypatch.setattr(module, "PARTS", tuple(parts))
    return module


Refusal = Callable[..., str]


@pytest.fixture
def refusal(runner: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """What the runner writes to stderr when it refuses these arguments with exit status 2."""

    def refused(*argv: str) -> str:
        with pytest.raises(SystemExit) as ended:
            runner.main(["--device", "cpu", "--out", str(tmp_path / "out"), *argv])
        assert ended.value.code == 2
        return capsys.readouterr().err

    return refused


def test_a_page_without_marks_and_unknown_names_are_refused(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Nothing\n")
    assert "add them" in refusal("--page", str(tmp_path / "page.md"))
    unknown = refusal("--budget", "1", "--only", "nothing")
    assert "no check is called nothing; there are toy.wrong, toy.raises" in " ".join(unknown.split())
    assert "--budget SECONDS" in refusal()


def test_mistakes_are_said_in_one_line_before_anything_runs(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(MARKS)
    (tmp_path / "file").touch()
    mistakes = {
        ("--budget", "-5"): "--budget (-5) must be at least 0 seconds",
        ("--budget", "5", "--out", str(tmp_path / "file" / "out")): "--out: ",
        ("--budget", "5", "--page", str(tmp_path / "none.md")): "--page: ",
        ("--page", str(tmp_path / "page.md")): "holds no results",
        ("--budget", "5", "--device", "cuda"): "torch finds no GPU here; --device cpu is the rehearsal",
    }
    for options, words in mistakes.items():
        if "cuda" in options and torch.cuda.is_available():
            continue
        assert words in refusal(*options).splitlines()[-1]
    assert (tmp_path / "page.md").read_text() == MARKS
