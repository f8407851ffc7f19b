"""From a mapping of options to a frozen dataclass, with every problem at once, each under its dotted name.

The dataclasses are those of the standard library, for which pydantic does not forbid extra keys: this module
checks names. pydantic checks values in its strict JSON mode: a list fills a tuple and an int a float, but
True is not an int, 1 is not a bool, and neither "8" nor 2.0 is an int.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from difflib import SequenceMatcher
from functools import cache
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from swin_moe.yaml_files import got

_SHAPES = {  # pydantic speaks of JSON
    "tuple_type": "Input should be a valid list",
    "dataclass_type": "Input should be a mapping of options",
    "int_or_list": "Input should be a valid integer, or a list of two",
    "text_or_mapping": "Input should be a valid string, or a mapping of names",
    "missing": "too short",  # of a list; a missing option has its own line
}

Section = TypeVar("Section")
NAMED = "NAME"  # stands for the names of a mapping of sections, dict[str, Section], in dotted names


def option_problems(kind: type, tree: Any) -> list[str]:
    """All that is wrong with a tree of options for a dataclass, one line each; rules of the dataclass too."""
    return [*_structure_problems(kind, tree), *_value_problems(kind, tree)]


def from_tree(kind: type[Section], tree: Any) -> Section:
    """The dataclass with the options of a tree in which `option_problems` sees none."""
    section: Section = _adapter(cast(Any, kind)).validate_json(_document(tree), strict=True)
    return section


def _sections(hint: Any) -> list[Any]:
    """The dataclasses that a type holds: itself, or those of Section | None and tuple[Section, ...]."""
    if get_origin(hint) is dict:
        return []
    return [hint] if is_dataclass(hint) else [s for arg in get_args(hint) for s in _sections(arg)]


def named_section(hint: Any) -> Any:
    """The dataclass of dict[str, Section], which a type is or may be; None for other types."""
    mapping = next((kind for kind in (hint, *get_args(hint)) if get_origin(kind) is dict), None)
    return next((kind for kind in get_args(mapping) if is_dataclass(kind)), None)


def option_names(section: type, prefix: str = "", needed: bool = True) -> dict[str, bool]:
    """Every dotted name below a section, and whether it must be given."""
    options, hints = {}, _hints(section)
    for option in fields(section):
        name = prefix + option.name
        options[name] = needed and option.default is MISSING and option.default_factory is MISSING
        for below in _sections(hints[option.name]):
            options |= option_names(below, f"{name}.", options[name])
        if (below := named_section(hints[option.name])) is not None:
            options |= option_names(below, f"{name}.{NAMED}.", needed=False)
    return options


@cache
def _hints(section: type) -> dict[str, Any]:
    """The type of each option of a section, whose annotations are evaluated once; not to be changed."""
    return get_type_hints(section)


def _structure_problems(kind: type, tree: Any) -> Iterator[str]:
    """Unknown options, and what pydantic takes for a Literal though only `==` holds (True and 1.0 for 1)."""

    def problems(hint: Any, value: Any, path: str) -> Iterator[str]:
        sections, named = _sections(hint), named_section(hint)
        if isinstance(value, dict) and named is not None:
            for key, below in value.items():
                for line in problems(named, below, f"{path}.{NAMED}"):
                    yield line.replace(f"{path}.{NAMED}", f"{path}.{key}")
        elif isinstance(value, list):
            for i, item in enumerate(value if sections else ()):
                yield from problems(hint, item, f"{path}[{i}]")
        elif isinstance(value, dict) and sections:
            hints = {name: h for section in sections for name, h in _hints(section).items()}
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
    """The nearest option: by its last part, in any section, then by its whole name."""
    options, (section, _, last) = option_names(kind), name.rpartition(".")
    pairs = {valid: ((last, valid.rpartition(".")[2]), (name, valid)) for valid in options}
    likeness = {valid: [SequenceMatcher(None, *p).ratio() for p in pair] for valid, pair in pairs.items()}
    nearest = max(options, key=lambda valid: likeness[valid])
    if nearest == name:  # a YAML key with dots in it
        return "dotted names are for overrides, in YAML write nested mappings"
    if likeness[nearest][0] >= 0.6:
        return f"did you mean {nearest}?"
    words = [v for v in options if v.startswith(f"{section}.") and last in v.rpartition(".")[2].split("_")]
    if words:
        return f"did you mean {' or '.join(words)}?"
    section = re.sub(r"\[\d+]", "", section)  # of a section in a list
    split = (valid.rpartition(".") for valid in options)
    return "known here: " + ", ".join(leaf for above, _, leaf in split if above == section)


def _value_problems(section: type, tree: Any) -> Iterator[str]:
    """Missing options, and values that pydantic or a section's own rules refuse."""
    if not (strict := _pydantic_errors(section, tree, strict=True)):
        return
    lax = _pydantic_errors(section, tree, strict=False)
    better = {error["loc"]: error["msg"] for error in lax}  # lax mode says why a text is not a number
    options = option_names(section)
    for error in _of_one_choice(strict):
        loc, kind = _places(error["loc"], tree, options), error["type"]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)[1:]
        if kind in ("value_error", "assertion_error"):  # a section's own rule, which names its options
            yield with_full_names(str(error["ctx"]["error"]), path, options)
        elif kind == "missing" and isinstance(loc[-1], str):
            below = ", ".join(name for name in options if options[name] and name.startswith(f"{path}."))
            yield f"{path}: required, but not given" + (f"; it needs {below}" if below else "")
        else:
            reason = _SHAPES.get(kind) or better.get(error["loc"], error["msg"])
            yield f"{path}: {reason}{got(error['input'])}"


def with_full_names(message: str, path: str, options: Iterable[str]) -> str:
    """A message of a section's own rule with the dotted names of its options in full.

    A section that several others hold knows its own name alone: "teacher.ema" becomes "distill.teacher.ema".

    Args:
        message: in which options of the section begin with the last part of its path.
        path: of the section from the top, such as "distill.teacher".
        options: the full names of options, such as "distill.teacher.ema".
    """
    above, _, own = path.rpartition(".")
    leaves = [name.removeprefix(f"{path}.") for name in options if name.startswith(f"{path}.")]
    if not above or not leaves:
        return message
    short = rf"(?<![\w./])({re.escape(own)}\.(?:{'|'.join(map(re.escape, leaves))}))(?![\w/])"
    return re.sub(short, rf"{above}.\1", message)


def _places(loc: tuple[int | str, ...], tree: Any, options: Iterable[str]) -> list[int | str]:
    """The names and the numbers of list items in a location, without what pydantic calls types of a union.

    A name is one of the tree, or of an option, such as one that is missing.
    """
    names, places = {part for name in options for part in name.split(".")}, []
    for part in loc:
        is_there = _is_in(part, tree)
        if is_there or isinstance(part, int) or part in names:
            places.append(part)
            tree = tree[part] if is_there else None
    return places


def _is_in(part: int | str, tree: Any) -> bool:
    """Whether a part of a location is a key of a mapping or an item of a list."""
    if isinstance(tree, list):
        return isinstance(part, int) and part < len(tree)
    return isinstance(tree, dict) and part in tree


def _of_one_choice(errors: list[ErrorDetails]) -> Iterator[ErrorDetails]:
    """Of an option that takes a number or a list, a text or a mapping, the errors of what it looks like."""
    places = [(error["loc"][:-1], str(error["loc"][-1]) if error["loc"] else "") for error in errors]
    no_lists = {option for option, choice in places if choice.startswith("tuple[")}
    no_texts = {option for option, choice in places if choice == "str"}
    for error, (option, choice) in zip(errors, places, strict=True):
        if choice.startswith("dict[") and option in no_texts:
            continue
        if choice == "str":
            if not isinstance(error["input"], dict):
                yield {**error, "type": "text_or_mapping"}
        elif option in no_lists and choice == "int":
            yield {**error, "type": "int_or_list"}
        elif option not in no_lists and not (choice == "int" and isinstance(error["input"], list)):
            yield error


def _pydantic_errors(section: type, tree: Any, strict: bool) -> list[ErrorDetails]:
    try:
        _adapter(section).validate_json(_document(tree), strict=strict)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


@cache
def _adapter(section: Any) -> TypeAdapter[Any]:
    return TypeAdapter(section)


def _document(tree: Any) -> str:
    """A tree as JSON; what JSON has no form for becomes text, which no option but a string takes."""
    return json.dumps(tree, default=repr)
