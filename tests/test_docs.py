"""The files, links and names in the documentation and in docstrings exist."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

from swin_moe.moe.routers import ROUTERS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("launcher", "swin_moe", "parallel", "data_shards")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
READMES = [ROOT / package / "README.md" for package in PACKAGES]
FOLDERS = "launcher|swin_moe|parallel|data_shards|tests|benchmarks|slurm|configs"
PLACEHOLDERS = ("CONFIG.", "x.")  # stand for any name
LINK = re.compile(r"\[((?:[^\]`]|`[^`]*`)*)\]\(([^)\s]*)\)")  # text, target
LINE_NUMBER = re.compile(r"\.(?:py|c):\d+")
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w/-]+\.(?:py|yaml|sh|c|sbatch)\b")


def missing(text: str) -> Iterator[str]:
    """The paths in a text that lead to no file."""
    modules = [f"benchmarks/{name}.py" for name in re.findall(r"-m benchmarks\.(\w+)", text)]
    names = (
        path for path in [*PATH.findall(text), *modules] if not path.split("/")[-1].startswith(PLACEHOLDERS)
    )
    return (path for path in names if not (ROOT / path).exists())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_pages_exist(page: Path) -> None:
    assert list(missing(page.read_text())) == []


@pytest.mark.parametrize(
    "package", ["launcher", "swin_moe", "parallel", "data_shards", "benchmarks", "tests"]
)
def test_paths_in_code_exist(package: str) -> None:
    files = [file for file in (ROOT / package).rglob("*.py") if file != Path(__file__)]
    found = {file.name: list(missing(file.read_text())) for file in files}
    assert {name: paths for name, paths in found.items() if paths} == {}


def test_a_path_that_leads_nowhere_is_found() -> None:
    assert list(missing("see `parallel/nothing.py`, launcher/__main__.py and x/parallel/other.py")) == [
        "parallel/" + "nothing.py"
    ]


def test_the_table_of_folders_names_every_module() -> None:
    rows = re.findall(
        r"^\| `([\w/]+)/` \| (.*?) \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE
    )
    listed = {f"{folder}/{name}" for folder, names in rows for name in re.findall(r"`(\w+)`", names)}
    packages = (ROOT / name for name in ("launcher", "swin_moe", "parallel", "data_shards"))
    files = (file.relative_to(ROOT) for package in packages for file in package.rglob("*.py"))
    assert listed == {str(file.with_suffix("")) for file in files if file.name != "__init__.py"}


@pytest.mark.parametrize("package", ["launcher", "swin_moe", "parallel", "data_shards"])
def test_modules_in_the_readme_of_a_package_exist(package: str) -> None:
    names = re.findall(r"`([\w/]+\.py)`", (ROOT / package / "README.md").read_text())
    files = [*(ROOT / package).rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    paths = {f"/{file.relative_to(ROOT)}" for file in files}
    assert names
    assert [name for name in names if not any(path.endswith(f"/{name}") for path in paths)] == []


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_resolve(page: Path) -> None:
    assert [target for _, target in links(page) if not resolves(page, target)] == []


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_no_line_numbers(page: Path) -> None:
    """Line numbers of source files become wrong with the next edit."""
    assert LINE_NUMBER.findall(page.read_text()) == []


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda page: str(page.relative_to(ROOT)))
def test_names_that_link_to_a_source_file_are_defined_there(page: Path) -> None:
    """[`Name.method`](../package/module.py) is a class, function, method or constant of that module."""
    names = [(text, target) for text, target in links(page) if re.fullmatch(r"`[\w.]+`", text)]
    modules = [(text.strip("`"), page.parent / target) for text, target in names if target.endswith(".py")]
    unknown = [name for name, file in modules if not name.endswith(".py") and not defines(file, name)]
    assert unknown == []


def test_names_are_looked_up_in_their_module() -> None:
    assert defines(Path(__file__), "test_names_are_looked_up_in_their_module")
    assert defines(Path(__file__), "PAGES")
    assert not defines(Path(__file__), "PAGES.nothing")


def examples(page: str) -> list[str]:
    """The examples in Python of a page in docs."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


EXAMPLES = [*examples("extending"), *examples("shards")]


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_of_pages_run(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with patch.dict(ROUTERS):  # an example may add an entry
        exec(compile(example, "an example of a page", "exec"), {"__name__": "example"})


@pytest.mark.long
def test_the_examples_of_the_page_on_python_run_in_their_order(tmp_path: Path) -> None:
    """They train a run, which takes a process of its own."""
    (tmp_path / "script.py").write_text("\n".join(examples("python")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "evaluation" in done.stdout


def links(page: Path) -> list[tuple[str, str]]:
    """The links and pictures of a page outside of code blocks: (text, target)."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ {4}(?! *[-|]).*$", "", text, flags=re.MULTILINE)
    return [link for link in LINK.findall(text) if not link[1].startswith("http")]


def resolves(page: Path, target: str) -> bool:
    """Whether a file exists, and a heading in it where the target names one."""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    return file.exists() and (not anchor or anchor in headings(file))


@cache
def headings(page: Path) -> list[str]:
    """The anchors that GitHub makes from the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles]


def defines(file: Path, name: str) -> bool:
    """Whether a module defines a dotted name: a class, a function, a method, a constant or a field."""
    body: list[ast.stmt] = list(parsed(file).body)
    for part in name.split("."):
        matches = [node for node in body if part in names_of(node)]
        if not matches:
            return False
        body = [child for node in matches for child in getattr(node, "body", [])]
    return True


@cache
def parsed(file: Path) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(file.read_text())


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
