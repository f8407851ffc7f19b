"""The named configurations of configs/, and the model that each describes. No torch.

Only the `model:` section is read here; the launcher reads and validates the whole run.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parallel.suggest import suggestion
from swin_moe.config import ModelConfig
from swin_moe.errors import ModelError
from swin_moe.moe_config import MoEConfig
from swin_moe.options import from_tree, option_problems
from swin_moe.renamed import current_names
from swin_moe.yaml_files import YamlError, merge, read_yaml

NOT_RECIPES = ("base", "hardware", "studies")  # folders of configs/ that hold no configuration of a run
UNNAMED = ("configs", "recipes")  # folders with configurations whose models have no published name
OTHER_HEADS = ("detection", "segmentation")  # folders of models with heads that `build_model` does not make


@dataclass(frozen=True, kw_only=True)
class _Model:
    """The section of a file that is read here, so that options are named `model.depths` and so on."""

    model: ModelConfig


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
    others = (*UNNAMED, *OTHER_HEADS)
    return {name: file for name, file in recipe_files().items() if file.parent.name not in others}


def dense_model_files() -> dict[str, Path]:
    """The configuration of every named model with heads of its task, which `build_model` does not make."""
    return {name: file for name, file in recipe_files().items() if file.parent.name in OTHER_HEADS}


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
    section = {"model": merge(tree, current_names(given, "model"))}
    if problems := option_problems(_Model, section):
        raise ModelError("; ".join(dict.fromkeys(problems)))
    return from_tree(_Model, section).model


def _read(name: str) -> dict[str, Any]:
    """The `model:` section of a named configuration."""
    files = model_files()
    if name not in files:
        hint = suggestion(name, files, "swin_moe.list_models() names them all", most=3)
        raise ModelError(f"no model is called {name!r}; {hint}")
    try:
        tree, _ = read_yaml(files[name])
    except YamlError as error:
        raise ModelError(str(error)) from None
    return tree.get("model") or {}
