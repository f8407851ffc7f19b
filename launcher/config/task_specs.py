"""The specs of tasks by name: built-in ones, those of installed packages, registered ones and dotted paths.

A spec is `launcher.tasks.spec.TaskSpec`. Configuration needs its name and the dataclass of its options alone,
so that this module imports no task: a task is imported when a configuration names it.
"""

import importlib
import pkgutil
from collections.abc import Hashable
from functools import cache
from typing import Any, Protocol, cast

from launcher.config.errors import TaskError
from parallel.plug_ins import UnknownNameError, imported, path_of

BUILT_IN = "launcher.tasks"  # each of its packages holds one SPEC
GROUP = "swin_moe.tasks"  # entry points of other packages


class NamedSpec(Protocol):
    """What configuration needs of a task's spec."""

    @property
    def name(self) -> str:
        """Of the task, and of its section of options."""

    @property
    def options(self) -> type | None:
        """The dataclass of its options; None without any."""


_registered: dict[str, NamedSpec] = {}  # of this process: what `register` adds


def register(spec: NamedSpec) -> None:
    """Make a task known by its name in this process; ranks that are other processes do not learn of it."""
    _registered[spec.name] = spec


def unregister(name: str) -> None:
    """Undo `register`."""
    del _registered[name]


def built_in_tasks() -> list[str]:
    """The names of the packages in launcher/tasks, and of what is registered."""
    return [*_packages(), *_registered]


@cache  # every check of a configuration looks its task up
def _packages() -> tuple[str, ...]:
    folder = importlib.import_module(BUILT_IN).__path__
    return tuple(found.name for found in pkgutil.iter_modules(folder) if found.ispkg)


def find_spec(task: str) -> NamedSpec:
    """The spec of a task.

    Args:
        task: a name, or the dotted path of a spec, such as "my_package.my_task:SPEC".

    Raises:
        TaskError: there is none, or its module cannot be imported.
    """
    if task in _registered:
        return _registered[task]
    built_in = built_in_tasks()
    if task in built_in:
        return _imported(task, f"{BUILT_IN}.{task}:SPEC")
    try:
        return _imported(task, path_of(task, GROUP, built_in, "my_package.my_task:SPEC"))
    except UnknownNameError as error:
        raise TaskError(f"task: no such task (got {task!r}); {error}") from error


def _imported(task: str, path: str) -> NamedSpec:
    """The spec at MODULE:NAME."""
    try:
        spec: Any = imported(path)
    except ImportError as error:
        raise TaskError(f"task: {path} cannot be imported (got {task!r}): {error}") from error
    is_named = isinstance(getattr(spec, "name", None), str) and hasattr(spec, "options")
    if not (is_named and isinstance(spec, Hashable)):  # classes of configurations are kept by spec
        raise TaskError(f"task: {path} is no TaskSpec (got {task!r}), see docs/extending.md")
    return cast(NamedSpec, spec)
