"""From a YAML file and dotted overrides to a RunConfig, with every error at once; and back to YAML.

The schema is plain dataclasses, in which pydantic cannot be told to forbid extra keys: unknown options are
found here. Values are checked in pydantic's strict JSON mode: a list fills a tuple and an int a float, but
True is no int, 1 no bool, and neither "8" nor 2.0 an int. YAML is read by the rules of YAML 1.2, not by
PyYAML's 1.1, whose numbers, dates and booleans are traps: see docs/configuration.md.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from launcher.schema import RunConfig

Tree = dict[Any, Any]  # a mapping as YAML gives it

_YAML = "tag:yaml.org,2002:"
_PATTERNS = {  # of every plain scalar that is not a string
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9_]*)",
    # 1.5, .5, 1.5e3; then 1e-3, which PyYAML takes for a string; no option can mean .inf or .nan
    "float": r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+",
    "merge": r"<<",
}
_SCALARS = tuple((_YAML + tag, re.compile(rf"(?:{pattern})\Z")) for tag, pattern in _PATTERNS.items())
_SHAPES = {  # pydantic speaks of JSON
    "tuple_type": "Input should be a valid list",
    "dataclass_type": "Input should be a mapping of options",
    "missing": "too short",  # of a list; a missing option has its own line
}


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists every error, one a line."""


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads YAML 1.2 scalars and refuses a key that stands twice."""

    yaml_implicit_resolvers = {None: list(_SCALARS)}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            first = seen.setdefault((key.tag, str(key.value)), key.start_mark)
            if first is not key.start_mark:
                problem = f"the key {key.value!r} stands twice, first in line {first.line + 1}"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes a string that YAML 1.1 or 1.2 would read as anything else; writes lists on one line."""

    yaml_implicit_resolvers = {**yaml.SafeDumper.yaml_implicit_resolvers, None: list(_SCALARS)}

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_flow(self, data: Sequence[Any]) -> yaml.Node:
        return self.represent_sequence(_YAML + "seq", data, flow_style=True)


_Dumper.add_representer(tuple, _Dumper.represent_flow)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a RunConfig from a YAML file, with dotted overrides on top; of two for one option the last wins.

    Args:
        path: the YAML file.
        overrides: "model.moe.top_k=2" and the like; the value is YAML, and missing sections are made.

    Raises:
        ConfigError: with every error at once, each with its dotted name and its value.
    """
    tree = _parse_file(Path(path))
    problems: list[str] = []
    for override in overrides:
        try:
            tree = _apply(tree, override)
        except ConfigError as error:
            problems.append(str(error))
    adapter, document = TypeAdapter(RunConfig), json.dumps(tree)
    problems += _structure_problems(RunConfig, tree, "")
    problems += _value_problems(adapter, document)
    if problems:
        lines = "".join(f"\n  {line}" for line in dict.fromkeys(problems))
        raise ConfigError(f"{path} is not a valid {RunConfig.__name__}:{lines}")
    return adapter.validate_json(document, strict=True)


def dump_config(config: RunConfig) -> str:
    """Write every option, defaults included, as YAML that `load_config` reads back to an equal RunConfig."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _parse_file(path: Path) -> Tree:
    try:
        tree = _parse_yaml(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}{_near_files(path)}") from None
    except ConfigError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if tree is None:
        needed = ", ".join(name for name, needed in _options(RunConfig).items() if needed)
        raise ConfigError(f"{path} is empty; a {RunConfig.__name__} needs at least {needed}")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of options{_got(tree)}")
    return tree


def _parse_yaml(text: str | bytes) -> Any:
    """Read YAML into what JSON can hold: no alias inside itself, no !!binary; 1e400 is no number."""
    try:
        tree = yaml.load(text, Loader=_Loader)
        return json.loads(json.dumps(tree, ensure_ascii=False).encode(), parse_constant=str)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(where + ", ".join(filter(None, (error.context, error.problem)))) from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(" ".join(str(error).split())) from None


def _near_files(path: Path) -> str:
    if path.is_dir():
        names = sorted(file.name for file in path.glob("*.yaml"))
        return f"; it holds {', '.join(names)}" if names else ""
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = [str(path.parent / name) for name in get_close_matches(path.name, names) if name != path.name]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _apply(tree: Tree, override: str) -> Tree:
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not text.strip() or not all(parts):
        shown = name.strip() if all(parts) else "section.option"
        raise ConfigError(f"override {override!r} is not of the form {shown}=VALUE (null for none)")
    try:
        return _put(tree, parts, _parse_yaml(text), "")
    except ConfigError as error:
        raise ConfigError(f"override {override!r}: {error}") from None


def _put(tree: Tree, parts: list[str], value: Any, prefix: str) -> Tree:
    """Return a copy of `tree` with one value replaced; what it shares with `tree` is not changed."""
    head, *rest = parts
    if not rest:
        return {**tree, head: value}
    below = tree.get(head)
    if not isinstance(below, dict | None):
        raise ConfigError(f"{prefix}{head} holds no options{_got(below)}")
    return {**tree, head: _put(below or {}, rest, value, f"{prefix}{head}.")}


def _sections(hint: Any) -> list[Any]:
    """The dataclasses that a type holds: itself, or those of Section | None and tuple[Section, ...]."""
    return [hint] if is_dataclass(hint) else [s for arg in get_args(hint) for s in _sections(arg)]


def _options(section: type, prefix: str = "", needed: bool = True) -> dict[str, bool]:
    """Every dotted name below a section, and whether a run must give it."""
    options, hints = {}, get_type_hints(section)
    for option in fields(section):
        name = prefix + option.name
        options[name] = needed and option.default is MISSING and option.default_factory is MISSING
        for below in _sections(hints[option.name]):
            options |= _options(below, f"{name}.", options[name])
    return options


def _structure_problems(hint: Any, value: Any, path: str) -> Iterator[str]:
    """Unknown options, and what pydantic takes for a Literal though only `==` holds (True and 1.0 for 1)."""
    sections = _sections(hint)
    if isinstance(value, list):
        for i, item in enumerate(value if sections else ()):
            yield from _structure_problems(hint, item, f"{path}[{i}]")
    elif isinstance(value, dict) and sections:
        hints = {name: h for section in sections for name, h in get_type_hints(section).items()}
        for key, below in value.items():
            name = f"{path}.{key}" if path else str(key)
            if key in hints:
                yield from _structure_problems(hints[key], below, name)
            else:
                yield f"{name}: no such option; {_suggestion(name)}"
    else:
        choices = [c for h in (hint, *get_args(hint)) if get_origin(h) is Literal for c in get_args(h)]
        if value in choices and type(value) not in [type(c) for c in choices if c == value]:
            yield f"{path}: Input should be one of {', '.join(map(repr, choices))}{_got(value)}"


def _suggestion(name: str) -> str:
    """The nearest option: by its last part, wherever it stands, then by its whole name."""
    options, (section, _, last) = _options(RunConfig), name.rpartition(".")
    pairs = {valid: ((last, valid.rpartition(".")[2]), (name, valid)) for valid in options}
    likeness = {valid: [SequenceMatcher(None, *p).ratio() for p in pair] for valid, pair in pairs.items()}
    nearest = max(options, key=lambda valid: likeness[valid])
    if nearest == name:  # a YAML key with dots in it
        return "dotted names are for overrides, in YAML write nested mappings"
    if likeness[nearest][0] >= 0.6:
        return f"did you mean {nearest}?"
    section = re.sub(r"\[\d+]", "", section)  # of a section in a list
    split = (valid.rpartition(".") for valid in options)
    return "known here: " + ", ".join(leaf for above, _, leaf in split if above == section)


def _value_problems(adapter: TypeAdapter[RunConfig], document: str) -> Iterator[str]:
    strict, lax = (_pydantic_errors(adapter, document, strict) for strict in (True, False))
    better = {error["loc"]: error["msg"] for error in lax}  # lax mode says why a text is not a number
    options = _options(RunConfig)
    names = {part for name in options for part in name.split(".")}  # what pydantic calls a union is not one
    for error in strict:
        loc, kind = [part for part in error["loc"] if isinstance(part, int) or part in names], error["type"]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)[1:]
        if kind in ("value_error", "assertion_error"):  # a section's own rule, which names its options
            yield str(error["ctx"]["error"])
        elif kind == "missing" and isinstance(loc[-1], str):
            below = ", ".join(name for name in options if options[name] and name.startswith(f"{path}."))
            yield f"{path}: required, but not given" + (f"; it needs {below}" if below else "")
        else:
            reason = _SHAPES.get(kind) or better.get(error["loc"], error["msg"])
            yield f"{path}: {reason}{_got(error['input'])}"


def _pydantic_errors(adapter: TypeAdapter[RunConfig], document: str, strict: bool) -> list[ErrorDetails]:
    try:
        adapter.validate_json(document, strict=strict)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _got(value: Any) -> str:
    text = repr(value)
    return f" (got {text if len(text) <= 80 else text[:77] + '...'})"
