"""Parts of other packages, which a configuration or a command names: tasks, routers, sources of samples.

A name is that of an entry point of an installed package, or a dotted path MODULE:NAME. What is named is
imported, so treat a name that you got from elsewhere as code.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from parallel.suggest import suggestion


class UnknownNameError(LookupError):
    """A name that nobody has registered; says which there are."""


def path_of(name: str, group: str, known: Iterable[str], example: str) -> str:
    """The dotted path that a name stands for.

    Args:
        name: of an entry point, or a dotted path.
        group: of the entry points.
        known: the names that come with this program, for the message.
        example: a dotted path, for the message.

    Raises:
        UnknownNameError: it is neither.
    """
    if ":" in name:
        return name
    from importlib.metadata import entry_points  # takes longer than a small command

    installed = {point.name: point.value for point in entry_points(group=group)}
    if name in installed:
        return installed[name]
    names = list(dict.fromkeys([*known, *installed]))
    otherwise = f"known here: {', '.join(names)}, and dotted paths such as {example}"
    raise UnknownNameError(suggestion(name, names, otherwise))


def imported(path: str) -> Any:
    """The object at MODULE:NAME.

    Raises:
        ImportError: the module cannot be imported, or has no such name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ImportError(str(error)) from error
