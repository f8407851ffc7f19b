"""From a YAML file and dotted overrides to a RunConfig, with every error at once; and back to YAML.

`load_section` does the same for any other dataclass that a file holds.

The schema is plain dataclasses, in which pydantic cannot be told to forbid extra keys: unknown options are
found here. Values are checked in pydantic's strict JSON mode: a list fills a tuple and an int a float, but
True is no int, 1 no bool, and neither "8" nor 2.0 an int. How YAML is read, and what a file takes from its
`base:`, stands in swin_moe/yaml_files.py.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from launcher.config.schema import RunConfig
from swin_moe.registry import recipe_files
from swin_moe.renamed import RENAMED, RenamedError, current_name, current_names
from swin_moe.yaml_files import SCALARS, YAML, Origins, Tree, YamlError, got, parse_yaml, read_yaml

_SHAPES = {  # pydantic speaks of JSON
    "tuple_type": "Input should be a valid list",
    "dataclass_type": "Input should be a mapping of options",
    "int_or_list": "Input should be a valid integer, or a list of two",
    "missing": "too short",  # of a list; a missing option has its own line
}


Section = TypeVar("Section")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists every error, one a line."""


class _Dumper(yaml.SafeDumper):
    """Quotes a string that YAML 1.1 or 1.2 would read as anything else; writes lists on one line."""

    yaml_implicit_resolvers = {**yaml.SafeDumper.yaml_implicit_resolvers, None: list(SCALARS)}

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_flow(self, data: Sequence[Any]) -> yaml.Node:
        return self.represent_sequence(YAML + "seq", data, flow_style=True)


_Dumper.add_representer(tuple, _Dumper.represent_flow)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a RunConfig from a YAML file, with dotted overrides on top; of two for one option the last wins.

    Args:
        path: the YAML file, or the name of a recipe; what the file does not say comes from its `base:`, then
            from the defaults.
        overrides: "model.moe.top_k=2" and the like; the value is YAML, and missing sections are made.

    Raises:
        ConfigError: with every error at once, each with its dotted name and its value.
    """
    return load_section(RunConfig, config_file(path), overrides)


def config_file(name_or_path: str | Path) -> Path:
    """The YAML file of a configuration.

    Args:
        name_or_path: a path, or the name of a recipe, such as "swinv2_tiny_patch4_window8_256".

    Raises:
        ConfigError: there is neither a file nor a recipe of this name.
    """
    path = Path(name_or_path)
    if path.exists() or path.suffix or path.name != str(name_or_path):
        return path
    recipes = recipe_files()
    if path.name not in recipes:
        near = get_close_matches(path.name, recipes)
        hint = f"did you mean {' or '.join(near)}?" if near else "`swin-moe models --names` lists the recipes"
        raise ConfigError(f"{path}: there is neither a file nor a recipe of this name; {hint}")
    return recipes[path.name]


def load_section(kind: type[Section], path: str | Path, overrides: Sequence[str] = ()) -> Section:
    """As `load_config`, for a file that holds another dataclass."""
    try:
        tree, origins = read_yaml(Path(path))
    except YamlError as error:
        raise ConfigError(str(error)) from None
    needed = ", ".join(name for name, needed in _options(kind).items() if needed)
    if needed and not tree:
        raise ConfigError(f"{path} is empty; a {kind.__name__} needs at least {needed}")
    problems: list[str] = []
    for override in overrides:
        try:
            tree = _apply(tree, override)
        except ConfigError as error:
            problems.append(str(error))
    adapter, document = TypeAdapter(kind), json.dumps(tree)
    problems += _structure_problems(kind, tree)
    problems += _value_problems(kind, adapter, document)
    if problems:
        elsewhere = _elsewhere(origins, Path(path), overrides)
        lines = "".join(f"\n  {line}{_origin(line, elsewhere)}" for line in dict.fromkeys(problems))
        raise ConfigError(f"{path} is not a valid {kind.__name__}:{lines}")
    return adapter.validate_json(document, strict=True)


def dump_config(config: RunConfig) -> str:
    """Write every option, defaults included, as YAML that `load_config` reads back to an equal RunConfig."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _elsewhere(origins: Origins, path: Path, overrides: Sequence[str]) -> Origins:
    """The options whose values come from a base, neither from the file itself nor from an override."""
    names = (override.partition("=")[0].strip() for override in overrides)
    overridden = tuple(f"{RENAMED.get(name, name)}." for name in names)
    return {
        name: file for name, file in origins.items() if file != path and not f"{name}.".startswith(overridden)
    }


def _origin(problem: str, elsewhere: Origins) -> str:
    """Where the option that a problem begins with was set, if not in the file itself."""
    name = re.split(r"[^\w.]", problem, maxsplit=1)[0]
    return f" [{elsewhere[name]}]" if name in elsewhere else ""


def _apply(tree: Tree, override: str) -> Tree:
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not text.strip() or not all(parts):
        shown = name.strip() if all(parts) else "section.option"
        raise ConfigError(f"override {override!r} is not of the form {shown}=VALUE (null for none)")
    try:
        parts = current_name(".".join(parts)).split(".")
        value = current_names(parse_yaml(text), ".".join(parts))
        return _put(tree, parts, value, "")
    except (ConfigError, YamlError, RenamedError) as error:
        raise ConfigError(f"override {override!r}: {error}") from None


def _put(tree: Tree, parts: list[str], value: Any, prefix: str) -> Tree:
    """Return a copy of `tree` with one value replaced; what it shares with `tree` is not changed."""
    head, *rest = parts
    if not rest:
        return {**tree, head: value}
    below = tree.get(head)
    if not isinstance(below, dict | None):
        raise ConfigError(f"{prefix}{head} holds no options{got(below)}")
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


def _structure_problems(kind: type, tree: Tree) -> Iterator[str]:
    """Unknown options, and what pydantic takes for a Literal though only `==` holds (True and 1.0 for 1)."""

    def problems(hint: Any, value: Any, path: str) -> Iterator[str]:
        sections = _sections(hint)
        if isinstance(value, list):
            for i, item in enumerate(value if sections else ()):
                yield from problems(hint, item, f"{path}[{i}]")
        elif isinstance(value, dict) and sections:
            hints = {name: h for section in sections for name, h in get_type_hints(section).items()}
            for key, below in value.items():
                name = f"{path}.{key}" if path else str(key)
                if key in hints:
                    yield from problems(hints[key], below, name)
                else:
                    yield f"{name}: no such option; {_suggestion(name, kind)}"
        else:
            choices = [c for h in (hint, *get_args(hint)) if get_origin(h) is Literal for c in get_args(h)]
            if value in choices and type(value) not in [type(c) for c in choices if c == value]:
                yield f"{path}: Input should be one of {', '.join(map(repr, choices))}{got(value)}"

    yield from problems(kind, tree, "")


def _suggestion(name: str, kind: type) -> str:
    """The nearest option: by its last part, wherever it stands, then by its whole name."""
    options, (section, _, last) = _options(kind), name.rpartition(".")
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


def _value_problems(section: type, adapter: TypeAdapter[Any], document: str) -> Iterator[str]:
    strict, lax = (_pydantic_errors(adapter, document, strict) for strict in (True, False))
    better = {error["loc"]: error["msg"] for error in lax}  # lax mode says why a text is not a number
    options = _options(section)
    names = {part for name in options for part in name.split(".")}  # what pydantic calls a union is not one
    for error in _of_one_choice(strict):
        loc, kind = [part for part in error["loc"] if isinstance(part, int) or part in names], error["type"]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)[1:]
        if kind in ("value_error", "assertion_error"):  # a section's own rule, which names its options
            yield str(error["ctx"]["error"])
        elif kind == "missing" and isinstance(loc[-1], str):
            below = ", ".join(name for name in options if options[name] and name.startswith(f"{path}."))
            yield f"{path}: required, but not given" + (f"; it needs {below}" if below else "")
        else:
            reason = _SHAPES.get(kind) or better.get(error["loc"], error["msg"])
            yield f"{path}: {reason}{got(error['input'])}"


def _of_one_choice(errors: list[ErrorDetails]) -> Iterator[ErrorDetails]:
    """Of an option that takes a number or a list, the errors of the choice that the value looks like."""
    places = [(error["loc"][:-1], str(error["loc"][-1]) if error["loc"] else "") for error in errors]
    no_lists = {option for option, choice in places if choice.startswith("tuple[")}
    for error, (option, choice) in zip(errors, places, strict=True):
        if option in no_lists and choice == "int":
            yield {**error, "type": "int_or_list"}
        elif option not in no_lists and not (choice == "int" and isinstance(error["input"], list)):
            yield error


def _pydantic_errors(adapter: TypeAdapter[Any], document: str, strict: bool) -> list[ErrorDetails]:
    try:
        adapter.validate_json(document, strict=strict)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []
