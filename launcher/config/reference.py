"""Every option with its type, default, unit and meaning, read from the dataclasses that define the options.

The meaning of an option is the comment beside its field, or in the lines right above it. `swin-moe options`
prints it, and docs/options.md is made of it, which tests/launcher/config/test_reference.py holds.
"""

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from launcher.config.load import ConfigError, as_yaml
from launcher.config.task_sections import class_of_every_task
from parallel.suggest import suggestion
from swin_moe.options import NAMED, named_section

UNITS = {"_s": "seconds", "_gib": "GiB"}  # by the end of a name
PAGE_HEAD = """\
# Options

Every option of a configuration. `swin-moe options PATTERN` prints those whose name or meaning contains
PATTERN, and `swin-moe config NAME` prints the values of a recipe. Files, overrides and durations:
[configuration.md](configuration.md). `swin-moe options --markdown` makes this page of comments in the code.
"""


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option as a person reads it."""

    name: str  # dotted
    type: str
    default: str  # in YAML; "required" where there is none
    meaning: str

    @property
    def unit(self) -> str:
        """The unit that the end of the name says, or ""."""
        return next((unit for end, unit in UNITS.items() if self.name.endswith(end)), "")

    def __str__(self) -> str:
        unit = f"; {self.unit}" if self.unit else ""
        return f"{self.name}  ({self.type}; {self.default}{unit})\n    {self.meaning}"


def all_options() -> list[Option]:
    """The options of a run, with those of the tasks that are known here, in the order of the dataclasses."""
    return list(_options(class_of_every_task(), ""))


def matching(pattern: str) -> list[Option]:
    """The options whose name or meaning contains a text; upper and lower case are the same.

    Raises:
        ConfigError: there is none.
    """
    options, text = all_options(), pattern.lower()
    found = [option for option in options if text in option.name.lower()]
    found = found or [option for option in options if text in option.meaning.lower()]
    if not found:
        names = {option.name.rpartition(".")[2]: option.name for option in options}
        near = suggestion(pattern.rpartition(".")[2], names, "without PATTERN all are printed")
        raise ConfigError(f"no option has {pattern!r} in its name or meaning; {near}")
    return found


def as_page(options: list[Option]) -> str:
    """The page docs/options.md: a table for each section."""
    lines, before = [PAGE_HEAD], None
    for option in options:
        section = option.name.rpartition(".")[0]
        if section != before:
            lines.append(
                f"\n## {section or 'the run'}\n\n| option | type | default | meaning |\n|---|---|---|---|\n"
            )
        before = section
        cells = (f"`{option.name.rpartition('.')[2]}`", option.type, f"`{option.default}`", option.meaning)
        unit = f" ({option.unit})" if option.unit else ""
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)}{unit} |\n")
    return "".join(lines)


def _options(section: type, prefix: str) -> Iterator[Option]:
    """The options of a dataclass, those of its sections after its own."""
    hints, meanings = get_type_hints(section), _meanings(section)
    below: list[tuple[type, str]] = []
    for field in fields(section):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        kind = next(
            (kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)), None
        )
        if kind is not None:
            below.append((kind, f"{name}."))
        if (named := named_section(hint)) is not None:
            below.append((named, f"{name}.{NAMED}."))
        if hint is not kind:  # a section that may be left out is an option too
            meaning = meanings.get(field.name, "")
            yield Option(name=name, type=_type(hint), default=_default(field), meaning=meaning)
    for kind, inside in below:
        yield from _options(kind, inside)


def _type(hint: Any) -> str:
    """A type in the words of YAML."""
    args = get_args(hint)
    if is_dataclass(hint):
        return "section"
    if get_origin(hint) is Literal:
        return " | ".join(map(str, args))
    if get_origin(hint) is tuple:
        return f"[{_type(args[0])}, ...]" if args[-1] is ... else f"[{', '.join(map(_type, args))}]"
    if get_origin(hint) is dict:
        return "section" if args[1] is Any else f"NAME: {_type(args[1])}"
    if args:
        return " | ".join(_type(arg) for arg in args)
    return {NoneType: "null", str: "text", bool: "true | false"}.get(hint) or str(hint.__name__)


def _default(field: "Field[Any]") -> str:
    """The default in YAML, in one line."""
    if field.default_factory is not MISSING:
        return as_yaml(field.default_factory())
    return "required" if field.default is MISSING else as_yaml(field.default)


def _meanings(section: type) -> dict[str, str]:
    """The comment of each field of a dataclass, and of those that it inherits."""
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if is_dataclass(kind) and kind.__module__ != class_of_every_task.__module__:
            found |= comments(inspect.getsource(kind))
    return found


def comments(source: str) -> dict[str, str]:
    """The comments of the fields of a class: inside the statement of each, and right above it."""
    lines, found = textwrap.dedent(source).splitlines(), {}
    remarks = _remarks(lines)
    (kind,) = ast.parse("\n".join(lines)).body
    assert isinstance(kind, ast.ClassDef)
    for node in kind.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first, last = node.lineno, node.end_lineno or node.lineno
            while first - 1 in remarks and lines[first - 2].lstrip().startswith("#"):
                first -= 1
            found[node.target.id] = " ".join(remarks[i] for i in range(first, last + 1) if i in remarks)
    return found


def _remarks(lines: list[str]) -> dict[int, str]:
    """The text of each comment by its line, counted from 1."""
    tokens = tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
