"""From a YAML file and dotted overrides to a RunConfig, with every error at once; and back to YAML.

`load_section` does the same for any other dataclass that a file holds. swin_moe/options.py validates,
swin_moe/yaml_files.py reads YAML and merges what a file takes from its `base:`.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml

from launcher.config.errors import ConfigError
from launcher.config.schema import RunConfig
from launcher.config.task_sections import of_task
from parallel.suggest import suggestion
from swin_moe.options import from_tree, option_names, option_problems
from swin_moe.recipes import recipe_files
from swin_moe.renamed import RenamedError, current_name, current_names
from swin_moe.yaml_files import SCALARS, YAML, Origins, Tree, YamlError, got, parse_yaml, read_yaml

Section = TypeVar("Section")


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
    file = config_file(path)
    tree, origins, problems = _read(RunConfig, file, overrides)
    kind, tree, more = of_task(tree)
    _raise_for(RunConfig, file, overrides, origins, problems + more)
    return from_tree(kind, tree)


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
        hint = suggestion(path.name, recipes, "`swin-moe models --names` lists the recipes", most=3)
        raise ConfigError(f"{path}: there is neither a file nor a recipe of this name; {hint}")
    return recipes[path.name]


def load_section(kind: type[Section], path: str | Path, overrides: Sequence[str] = ()) -> Section:
    """As `load_config`, for a file that holds another dataclass."""
    tree, origins, problems = _read(kind, Path(path), overrides)
    _raise_for(kind, Path(path), overrides, origins, problems + option_problems(kind, tree))
    return from_tree(kind, tree)


def _read(kind: type, path: Path, overrides: Sequence[str]) -> tuple[Tree, Origins, list[str]]:
    """The options of a file with the overrides, where they come from, and what is wrong with the overrides.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        tree, origins = read_yaml(path)
    except YamlError as error:
        raise ConfigError(str(error)) from None
    needed = ", ".join(name for name, needed in option_names(kind).items() if needed)
    if needed and not tree:
        raise ConfigError(f"{path} is empty; a {kind.__name__} needs at least {needed}")
    problems: list[str] = []
    for override in overrides:
        try:
            tree = _apply(tree, override)
        except ConfigError as error:
            problems.append(str(error))
    return tree, origins, problems


def _raise_for(
    kind: type, path: Path, overrides: Sequence[str], origins: Origins, problems: Sequence[str]
) -> None:
    """ConfigError with every problem and the file that it comes from, if there is any."""
    if problems:
        elsewhere = _elsewhere(origins, path, overrides)
        lines = "".join(f"\n  {line}{_origin(line, elsewhere)}" for line in dict.fromkeys(problems))
        raise ConfigError(f"{path} is not a valid {kind.__name__}:{lines}")


def dump_config(config: RunConfig) -> str:
    """Write every option, defaults included, as YAML that `load_config` reads back to an equal RunConfig."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def as_yaml(value: Any) -> str:
    """A value as it is written behind `name=`: YAML in one line."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _elsewhere(origins: Origins, path: Path, overrides: Sequence[str]) -> Origins:
    """The options whose values come from a base, neither from the file itself nor from an override."""
    names = (override.partition("=")[0].strip() for override in overrides)
    overridden = tuple(f"{current_name(name)}." for name in names)
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
