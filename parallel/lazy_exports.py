"""The names that a package offers, imported when they are first used: importing the package stays fast.

    if TYPE_CHECKING:
        from package.module import Name        # the one place that says where a name is defined

    __getattr__ = lazy_exports(__name__, __file__)

Type checkers follow the imports. At run time they are read from the source of the package.
"""

import ast
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_exports(package: str, file: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package: the imports under its `if TYPE_CHECKING:`, each at its first use.

    Args:
        package: its `__name__`.
        file: its `__file__`.
    """

    def attribute(name: str) -> Any:
        """The object of a name; AttributeError for one that the package does not offer."""
        if (module := _modules(file).get(name)) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module), name)

    return attribute


def deferred(path: str) -> Callable[..., Any]:
    """A function that stands for another one, which is imported when it is called.

    Args:
        path: MODULE:NAME of the other function.
    """
    module, _, name = path.partition(":")

    def call(*args: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*args, **options)

    call.__name__, call.__doc__ = name, f"Call {path}."
    return call


@cache
def _modules(file: str) -> dict[str, str]:
    """The module of each name that a file imports for type checkers."""
    blocks = [node for node in ast.parse(Path(file).read_text()).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}
