"""YAML files and what they share: `base:` names the files that a file goes on from.

    base: ../base/imagenet1k.yaml            or a list of files, of which the later win
    model: {window_size: 8}                  this file wins over its bases, option by option

Sections are merged key by key, all the way down; lists and other values are replaced whole, and null takes
the place of whatever a base says. A base may have bases of its own. Paths are relative to the file that names
them.

YAML is read by the rules of YAML 1.2, not by PyYAML's 1.1, whose numbers, dates and booleans are traps: see
docs/configuration.md.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from parallel.suggest import suggestion
from swin_moe.renamed import RenamedError, current_names
from swin_moe.text_files import TextError, read_text

Tree = dict[Any, Any]  # a mapping as YAML gives it
Origins = dict[str, Path]  # which file gave the value of each option, by dotted name

YAML = "tag:yaml.org,2002:"
_PATTERNS = {  # of every plain scalar that is not a string
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9_]*)",
    # 1.5, .5, 1.5e3; then 1e-3, which PyYAML takes for a string; no option can mean .inf or .nan
    "float": r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+",
    "merge": r"<<",
}
MOST_VALUES = 2**20  # of a file, aliases written out
SCALARS = tuple((YAML + tag, re.compile(rf"(?:{pattern})\Z")) for tag, pattern in _PATTERNS.items())


class YamlError(ValueError):
    """A file or a text that cannot be read; the message says which, where and why."""


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads YAML 1.2 scalars and refuses a key that stands twice."""

    yaml_implicit_resolvers = {None: list(SCALARS)}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            first = seen.setdefault((key.tag, str(key.value)), key.start_mark)
            if first is not key.start_mark:
                problem = f"the key {key.value!r} stands twice, first in line {first.line + 1}"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
        return node


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> tuple[Tree, Origins]:
    """Read a file and its bases into one tree without `base`; an empty file is an empty tree.

    Args:
        path: the file.
        above: the files that led here, each the base of the one before.

    Raises:
        YamlError: a file that is missing, no YAML or no mapping, or bases that go round in a circle.
    """
    if path.resolve() in [file.resolve() for file in above]:
        raise YamlError(f"base goes round in a circle: {' -> '.join(map(str, (*above, path)))}")
    own = _read_one(path, above)
    tree, origins = Tree(), Origins()
    for name in _bases(own, path):
        base = Path(os.path.normpath(path.parent / name))
        below, below_origins = read_yaml(base, (*above, path))
        tree, origins = merge(tree, below), origins | below_origins
    own.pop("base", None)
    try:
        own = current_names(own)
    except RenamedError as error:
        raise YamlError(f"{path}: {error}") from None
    return merge(tree, own), origins | dict.fromkeys(_names(own), path)


def merge(below: Mapping[Any, Any], over: Mapping[Any, Any]) -> Tree:
    """A tree on top of another, section by section; neither is changed."""
    tree = dict(below)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(tree.get(key), Mapping)
        tree[key] = merge(tree[key], value) if both else value
    return tree


def parse_yaml(text: str) -> Any:
    """Read YAML into what JSON can hold: no alias inside itself, no !!binary; 1e400 is no number."""
    try:
        tree = yaml.load(text, Loader=_Loader)
        _refuse_bomb(tree)
        return json.loads(json.dumps(tree, ensure_ascii=False).encode(), parse_constant=str)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(where + ", ".join(filter(None, (error.context, error.problem)))) from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise YamlError(" ".join(str(error).split())) from None


def _refuse_bomb(tree: Any) -> None:
    """Raise ValueError where aliases of aliases stand for more values than any configuration has."""
    sizes: dict[int, int] = {}

    def size(value: Any) -> int:
        if not isinstance(value, dict | list):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = 1  # of an alias inside itself, which JSON refuses
            below = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(map(size, below))
        return sizes[id(value)]

    if (values := size(tree)) > MOST_VALUES:
        raise ValueError(f"its aliases stand for {values} values; write them out, at most {MOST_VALUES}")


def got(value: Any) -> str:
    """The end of a message about a value."""
    text = repr(value)
    return f" (got {text if len(text) <= 80 else text[:77] + '...'})"


def _read_one(path: Path, above: tuple[Path, ...]) -> Tree:
    named = f"{path}, which {above[-1]} names as its base" if above else str(path)
    try:
        tree = parse_yaml(read_text(path))
    except (OSError, TextError) as error:
        reason = getattr(error, "strerror", None) or error
        raise YamlError(f"cannot read {named}: {reason}{_near_files(path)}") from None
    except YamlError as error:
        raise YamlError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict | None):
        raise YamlError(f"{path} must hold a mapping of options{got(tree)}")
    return tree or {}


def _bases(tree: Tree, path: Path) -> list[str]:
    bases = tree.get("base", [])
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) and base for base in bases):
        raise YamlError(f"{path}: base must be the name of a file, or a list of names{got(tree['base'])}")
    return bases


def _names(tree: Tree, prefix: str = "") -> Iterator[str]:
    """The dotted names of all values that are not sections."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _near_files(path: Path) -> str:
    if path.is_dir():
        names = sorted(file.name for file in path.glob("*.yaml"))
        return f"; it holds {', '.join(names)}" if names else ""
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    others = (name for name in names if name != path.name)
    hint = suggestion(path.name, others, prefix=f"{path.parent}/" if path.parent != Path() else "", most=3)
    return f"; {hint}" if hint else ""
