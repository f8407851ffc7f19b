"""`swin-moe study report`: its files, studies of hardly anything, and what the user can correct."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launcher.cli.program import main
from launcher.study.drawing.chart import for_page
from launcher.study.grid.trials import Study, write_study
from tests.launcher.study.study_runs import moe, study, trial, trouble, write_all, write_trial

VOID = {"meta", "link", "br", "img"}


class Checked(HTMLParser):
    """Elements that close in the order in which they were opened, ids, and what is linked."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._see(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._see(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def _see(self, attrs: dict[str, str | None]) -> None:
        self.ids += [attrs["id"] or ""] if "id" in attrs else []
        self.targets += [attrs[name] or "" for name in ("href", "src", "xlink:href") if name in attrs]


def checked(page: Path) -> Checked:
    parser = Checked()
    parser.feed(page.read_text())
    assert not parser.open
    return parser


def test_page_is_whole_small_and_alone(reported: Path) -> None:
    out = reported / "report"
    page, text = checked(out / "index.html"), (out / "index.html").read_text()
    assert len(text) < 1_500_000
    assert len(page.ids) == len(set(page.ids))
    inside = {target[1:] for target in page.targets if target.startswith("#")}
    assert inside <= set(page.ids)
    for target in (t for t in page.targets if not t.startswith("#") and t != "data:,"):
        assert (out / target).is_file(), target
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert not re.search(r"<script|@import|@font-face|url\((?!#)", text)


def test_names_are_texts(reported: Path) -> None:
    page, text = checked(reported / "report" / "index.html"), (reported / "report" / "index.html").read_text()
    assert "grid <i>&</i> trouble" in page.text
    assert trouble()["failed"].name in page.text
    assert "the loss is <nan> & stays so" in page.text
    assert "<i>" not in text
    assert "<nan>" not in text


def test_report_of_one_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_all(tmp_path / "one", [trial(moe(8) | {"optim.base_lr": 0.01}, 0, "only")])
    assert main(["study", "report", str(root), "--out", str(tmp_path / "out")]) == 0
    assert "1 of 1 trials finished" in capsys.readouterr().out
    page = checked(tmp_path / "out" / "index.html")
    assert "no spread is known" in page.text
    assert "all trials with experts have model.moe.capacity_factor=1.25. To add it:" in page.text
    assert "all trials have the same" in page.text
    assert not (root / "report").exists()
    (tmp_path / "one.yaml").write_text(
        f"study_dir: {root}\nconfig: debug\nseeds: [0]\naxes: {{optim.base_lr: [0.01]}}\n"
    )
    # named by its file, as in `status`
    assert main(["study", "report", str(tmp_path / "one.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["page"] == str(root / "report" / "index.html")
    assert Path(found["page"]).is_file()
    assert (found["trials"], found["finished"]) == (1, 1)
    assert main(["study", "status", str(root), "--json"]) == 0
    assert [cell["state"] for cell in json.loads(capsys.readouterr().out)["cells"]] == ["finished"]


def test_report_before_anything_is_finished(tmp_path: Path) -> None:
    root = tmp_path / "study"
    write_study(root, study([trial(moe(8), 0), trial(moe(4), 0)]))
    assert main(["study", "report", str(root)]) == 0
    page = checked(root / "report" / "index.html")
    assert "No trial has finished its training" in page.text
    assert "2 of 2 trials are not finished" in page.text


def test_report_of_what_is_not_classified(tmp_path: Path) -> None:
    """Without top1, as SimMIM has none, the loss is what everything is judged by."""
    root, trials = tmp_path / "study", [trial({"model.moe": None}, seed) for seed in (0, 1)]
    write_study(root, study(trials))
    for each in trials:
        run = write_trial(root, each)
        for path in (run / "summary.json", *run.glob("eval/*/*.json")):
            path.write_text(re.sub(r'"top[15]": [\d.]+, ', "", path.read_text()))
    assert main(["study", "report", str(root)]) == 0
    assert "Best loss: " in checked(root / "report" / "index.html").text


def test_report_of_a_task_with_another_metric(tmp_path: Path) -> None:
    """Its summaries say what is compared, here an average precision; nothing has a loss or a top1."""
    root = tmp_path / "study"
    trials = [trial(option, seed) for option in ({"model.moe": None}, moe(4), moe(8)) for seed in (0, 1)]
    write_study(root, study(trials))
    for each in trials:
        run = write_trial(root, each)
        for path in (run / "summary.json", *run.glob("eval/*/*.json")):
            text = re.sub(r'"top[15]": [\d.]+, ', "", path.read_text()).replace('"loss":', '"map":')
            path.write_text(text.replace("{", '{"primary": "map", "higher_is_better": true, ', 1))
    assert main(["study", "report", str(root)]) == 0
    text = checked(root / "report" / "index.html").text
    assert "Best map: " in text
    assert "Best loss" not in text
    assert "map" in (root / "report" / "cells.csv").read_text().partition("\n")[0].split(",")


def test_user_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "report", str(tmp_path / "none")]) == 2
    assert "study.json: No such file or directory" in capsys.readouterr().err
    write_study(tmp_path / "empty", Study(name="empty", axes={}, trials=()))
    assert main(["study", "report", str(tmp_path / "empty")]) == 2
    assert "has no trials" in capsys.readouterr().err
    root = write_all(tmp_path / "study", [trial({"model.moe": None})])
    (tmp_path / "file").write_text("")
    assert main(["study", "report", str(root), "--out", str(tmp_path / "file" / "x")]) == 2
    assert f"--out ({tmp_path / 'file' / 'x'}) cannot be written" in capsys.readouterr().err


def test_ids_and_colours_of_a_picture() -> None:
    svg = (
        '<?xml version="1.0"?>\n<svg width="10pt" height="20pt" viewBox="0 0 10 20"><!-- a --><metadata>\n'
        '</metadata><path id="m1" style="fill: #1b1e23"/><use xlink:href="#m1" clip-path="url(#p2)"/></svg>'
    )
    assert for_page(svg, "chart", 'a "title"') == (
        '<svg role="img" aria-label="a &#34;title&#34;" viewBox="0 0 10 20">'
        '<path id="chart-m1" style="fill: var(--ink)"/>'
        '<use xlink:href="#chart-m1" clip-path="url(#chart-p2)"/></svg>'
    )


def imported_by(modules: str) -> set[str]:
    """All modules that a fresh process has imported after `import modules`.

    DeepSpeed's autotuner would import mlflow, and with it pandas and scipy, where that is installed.
    """
    code = f"import sys; sys.modules['mlflow'] = None; import {modules}; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


@pytest.mark.long
def test_nothing_else_imports_what_a_report_needs() -> None:
    loaded = imported_by("launcher.cli.program, launcher.training.run")
    assert not {"pandas", "scipy", "jinja2", "matplotlib"} & loaded


@pytest.mark.long
def test_a_report_imports_no_training() -> None:
    assert not {"deepspeed", "tensorboard", "mpi4py"} & imported_by("launcher.study.report.report")


def test_the_command_line_imports_no_compiler() -> None:
    assert not {"torch._dynamo", "deepspeed"} & imported_by("launcher.cli.program, swin_moe")


@pytest.mark.long
def test_a_report_prints_no_messages_of_libraries(tmp_path: Path) -> None:
    """Where matplotlib has no place for its cache, which it warns of, and DeepSpeed would choose a device."""
    root = write_all(tmp_path / "s", [trial({"model.moe": None})])
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    environment |= {"MPLCONFIGDIR": "/dev/null/none", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-m", "launcher", "study", "report", str(root)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert run.stdout.count("\n") == 1
