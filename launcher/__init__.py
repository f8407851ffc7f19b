"""What a person types, and what a script calls: `launcher.load` and `launcher.train`."""

from typing import TYPE_CHECKING

from parallel.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from launcher.config.load import ConfigError, load_config
    from launcher.evaluation.loaded import LoadedModel, load
    from launcher.scripting import train

__all__ = ["ConfigError", "LoadedModel", "load", "load_config", "train"]
__getattr__ = lazy_exports(__name__, __file__)
