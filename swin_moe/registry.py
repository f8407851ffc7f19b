"""The named models: each configuration of configs/ by its file's name, read into a ModelConfig and built.

    swin_moe.build_model("swinv2_tiny_patch4_window8_256", num_classes=10)

Only the `model:` section is read here; the launcher reads and validates the whole run.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from parallel.ranks.mesh import Mesh
from swin_moe.backbone import model
from swin_moe.config import ModelConfig, ModelError, MoEConfig, require
from swin_moe.renamed import RenamedError, current_names
from swin_moe.yaml_files import YamlError, got, merge, read_yaml

NOT_RECIPES = ("base", "hardware", "studies")  # folders of configs/ that hold no configuration of a run
NOT_MODELS = ("configs", "recipes")  # folders with configurations whose models have no published name


def recipe_files() -> dict[str, Path]:
    """The configuration of every recipe by its name, from the checkout or the installed package.

    `configs/base` holds what the recipes share.
    """
    here = Path(__file__).resolve().parent
    folder = next((f for f in (here / "configs", here.parent / "configs") if f.is_dir()), here)
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*/*.yaml")])
    return {file.stem: file for file in files if file.parent.name not in NOT_RECIPES}


def model_files() -> dict[str, Path]:
    """The configuration of every named model: the recipes in the folders of the model families."""
    return {name: file for name, file in recipe_files().items() if file.parent.name not in NOT_MODELS}


def list_models() -> list[str]:
    """The names that `build_model` knows, family by family."""
    return list(model_files())


def load_model_config(name_or_config: str | ModelConfig, **overrides: Any) -> ModelConfig:
    """The ModelConfig of a name, or the one given, with some of its options replaced.

    Args:
        name_or_config: one of `list_models()`, or a ModelConfig.
        overrides: fields of ModelConfig; `moe` may be a MoEConfig, None, or a mapping of some of its fields.

    Raises:
        ModelError: an unknown name, an unknown option, or a value that no model can have.
    """
    given = {
        key: asdict(value) if isinstance(value, MoEConfig) else value for key, value in overrides.items()
    }
    tree = _read(name_or_config) if isinstance(name_or_config, str) else asdict(name_or_config)
    try:
        return _section(ModelConfig, merge(tree, current_names(given, "model")), "model")
    except RenamedError as error:
        raise ModelError(str(error)) from None


def build_model(
    name_or_config: str | ModelConfig, *, seed: int = 0, mesh: Mesh | None = None, **overrides: Any
) -> model.SwinTransformer:
    """A model by its name or its configuration, with initial weights; see `load_model_config`.

    Args:
        name_or_config: one of `list_models()`, or a ModelConfig.
        seed: of the weights; every parameter, and every expert, draws from its own generator.
        mesh: the layout; without one all experts are here and no process group is needed.
        overrides: fields of ModelConfig, such as num_classes=10.

    Raises:
        ModelError: an unknown name, an unknown option, or a value that no model can have.
        LayoutError: the experts do not divide over the mesh.
    """
    return model.build_model(load_model_config(name_or_config, **overrides), seed=seed, mesh=mesh)


def _read(name: str) -> dict[str, Any]:
    """The `model:` section of a named configuration."""
    files = model_files()
    if name not in files:
        near = get_close_matches(name, files, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "swin_moe.list_models() names them all"
        raise ModelError(f"no model is called {name!r}; {hint}")
    try:
        tree, _ = read_yaml(files[name])
    except YamlError as error:
        raise ModelError(str(error)) from None
    return tree.get("model") or {}


def _section(section: type, tree: Any, path: str) -> Any:
    """A frozen dataclass from a tree, by the types of its fields."""
    require(isinstance(tree, Mapping), f"{path} must be a mapping of options{got(tree)}")
    hints = get_type_hints(section)
    for name in tree:
        near = get_close_matches(str(name), hints, n=1)
        hint = f"did you mean {path}.{near[0]}?" if near else f"known here: {', '.join(hints)}"
        require(name in hints, f"{path}.{name}: no such option; {hint}")
    for field in fields(section):
        required = field.default is MISSING and field.default_factory is MISSING
        require(not required or field.name in tree, f"{path}.{field.name}: required, but not given")
    return section(**{name: _value(hints[name], value, f"{path}.{name}") for name, value in tree.items()})


def _value(hint: Any, value: Any, path: str) -> Any:
    """A value as its field wants it: an int fills a float and a list a tuple, nothing else is bent."""
    kind, choices = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _section(hint, value, path)  # type: ignore[arg-type]
    if kind is Literal:
        require(value in choices, f"{path} must be one of {', '.join(map(repr, choices))}{got(value)}")
        return value
    if kind is tuple:
        require(isinstance(value, list | tuple), f"{path} must be a list{got(value)}")
        return tuple(_value(choices[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if type(None) in choices:
        return None if value is None else _value(choices[0], value, path)
    if kind is UnionType:  # one number, or a list of them
        is_list = isinstance(value, list | tuple)
        return _value(next(c for c in choices if (get_origin(c) is tuple) == is_list), value, path)
    if hint is float and type(value) is int:
        return float(value)
    require(type(value) is hint, f"{path} must be of type {hint.__name__}{got(value)}")
    return value
