"""No module imports itself by way of others, at any level of the code.

import-linter holds the layers of folders (pyproject.toml). It does not see cycles inside a folder. An import
inside a function or under TYPE_CHECKING hides one from Python. Here all imports count.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("launcher", "swin_moe", "data_shards", "parallel")
Graph = dict[str, set[str]]  # the modules that a module imports


def module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.AST) -> Iterator[str]:
    """Every name that an import statement may load as a module, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(root: Path, packages: tuple[str, ...]) -> Graph:
    """The imports inside some packages; `from a.b import c` is a.b.c if that is a module, else a.b."""
    files = {module_name(path, root): path for name in packages for path in (root / name).rglob("*.py")}
    graph: Graph = {module: set() for module in files}
    for module, path in files.items():
        for name in imported(ast.parse(path.read_text())):
            target = name if name in files else name.rpartition(".")[0]
            if target in files:
                graph[module].add(target)
    return graph


def cycles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of more than one module, and modules that import themselves (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1 or module in graph[module]:
                found.append(sorted(component))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = import_graph(ROOT, PACKAGES)
    assert len(graph) > 200
    assert cycles(graph) == []


def test_a_cycle_of_hidden_imports_is_found(tmp_path: Path) -> None:
    """a imports b under TYPE_CHECKING, b imports the package's c in a function, and c imports a."""
    for name, text in {
        "__init__": "",
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import B\n",
        "b": "def f():\n    from p import c\n",
        "c": "import p.a as a\n",
        "d": "from p import a\nimport os\n",
    }.items():
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / f"{name}.py").write_text(text)
    graph = import_graph(tmp_path, ("p",))
    assert graph["p.d"] == {"p.a"}
    assert cycles(graph) == [["p.a", "p.b", "p.c"]]


IMPORT_ALL = """
import sys
from importlib import import_module
import deepspeed, torch, torchvision  # what they compute is theirs
from torch.utils._python_dispatch import TorchDispatchMode

class Recorded(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        print(module, operator)
        return operator(*args, **(kwargs or {}))

with Recorded():
    for module in sys.argv[1:]:
        import_module(module)
"""


@pytest.mark.long
def test_an_import_computes_nothing(tmp_path: Path) -> None:
    """A module may be imported when one of its functions is called: under torch's meta device, say.

    A tensor that it made then would be one without values, for the rest of the process.
    """
    (tmp_path / "makes_one.py").write_text("import torch\nONE = torch.tensor([1])\n")
    files = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    modules = [module_name(path, ROOT) for path in files if "import triton" not in path.read_text()]
    command = [sys.executable, "-c", IMPORT_ALL, *(name for name in modules if "__main__" not in name)]
    paths = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*command, "makes_one"], env=paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {row.split()[0] for row in done.stdout.splitlines()}
    assert found == {"makes_one"}
