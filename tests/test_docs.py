"""What the documentation and docstrings name is there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = "launcher|swin_moe|parallel|data_shards|tests|benchmarks|slurm|configs"
PLACEHOLDERS = ("CONFIG.", "x.")  # stand for any name
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w/-]+\.(?:py|yaml|sh|c|sbatch)\b")


def missing(text: str) -> Iterator[str]:
    """The paths in a text that lead to no file."""
    names = (path for path in PATH.findall(text) if not path.split("/")[-1].startswith(PLACEHOLDERS))
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
