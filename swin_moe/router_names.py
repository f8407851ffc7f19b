"""The names of routers: those that come with this package, entry points of other packages, and dotted paths.

    model.moe.router: my_package.routers:SharpRouter

A class of another package is imported when a configuration names it, so treat a configuration or a checkpoint
that you got from elsewhere as code. The built-in classes are in `moe/routers/`, which this module does not
import: configurations are read before models.
"""

from functools import cache
from typing import Any

from parallel.plug_ins import UnknownNameError, imported, path_of

SOFTMAX_ROUTERS = ("linear", "cosine")  # which noise, the load loss and Tutel make sense for
ROUTER_NAMES = (*SOFTMAX_ROUTERS, "sigmoid", "expert_choice", "soft", "hash", "random")
GROUP = "swin_moe.routers"  # entry points of other packages


class RouterError(ValueError):
    """There is no such router, or it cannot be imported."""


@cache
def own_router(name: str) -> Any:
    """The class of a router of another package: a subclass of `moe.routers.base.Router`.

    Args:
        name: of an entry point of the group `swin_moe.routers`, or a dotted path MODULE:CLASS.

    Raises:
        RouterError: there is none, its module cannot be imported, or it is no router.
    """
    try:
        found = imported(path_of(name, GROUP, ROUTER_NAMES, "my_package.routers:MyRouter"))
    except UnknownNameError as error:
        raise RouterError(f"model.moe.router ({name}): no such router; {error}") from error
    except ImportError as error:
        raise RouterError(f"model.moe.router ({name}) cannot be imported: {error}") from error
    bases = [f"{base.__module__}.{base.__name__}" for base in getattr(found, "__mro__", ())]
    if "swin_moe.moe.routers.base.Router" not in bases:
        raise RouterError(f"model.moe.router ({name}) is no subclass of Router, see docs/extending.md")
    return found
