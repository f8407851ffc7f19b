"""Options whose names have changed. Files, overrides and saved configurations may give them their old names.

Every reader of a configuration calls `current_names` first, so all other code has the new names alone.
"""

import copy
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from parallel.ranks.logs import ONCE
from swin_moe.errors import ModelError

RENAMED = {  # old name -> new name; both are in the same section
    "model.main_norm_every": "model.extra_norm_period",
    "model.checkpoint_every": "model.activation_checkpoint_every",
    "model.windows_at_a_time": "model.attention_chunk",
    "optim.clip_norm": "optim.max_grad_norm",
    "parallel.expert_slices": "parallel.expert_tensor_parallel_size",
    "parallel.expert_exchange.wire_dtype": "parallel.expert_exchange.communication_dtype",
}

Tree = dict[Any, Any]  # a mapping as YAML gives it


class RenamedError(ModelError):
    """A configuration gives an option under its old and its new name."""


def current_name(name: str) -> str:
    """The name of an option now, from its dotted name, which may be an old one."""
    if name not in RENAMED:
        return name
    log_renamed(name)
    return RENAMED[name]


def current_names(tree: Any, section: str = "", *, notice: bool = True) -> Any:
    """A configuration whose options have the names of now.

    Args:
        tree: a mapping of options; what is no mapping is returned as it is.
        section: the dotted name of the section that `tree` is; "" for a whole configuration.
        notice: whether to log each old name.

    Raises:
        RenamedError: an option has both names.
    """
    if not isinstance(tree, Mapping):
        return tree
    tree, prefix = copy.deepcopy(dict(tree)), f"{section}." if section else ""
    for old, new in RENAMED.items():
        if not old.startswith(prefix):
            continue
        *sections, key = old.removeprefix(prefix).split(".")
        below: Any = tree
        for name in sections:
            below = below.get(name) if isinstance(below, dict) else None
        if not isinstance(below, dict) or key not in below:
            continue
        new_key = new.rpartition(".")[2]
        if new_key in below:
            raise RenamedError(f"{old} is the old name of {new}: give one of them")
        items = [(new_key if name == key else name, value) for name, value in below.items()]
        below.clear()
        below.update(items)
        if notice:
            log_renamed(old)
    return tree


@cache
def log_renamed(old: str) -> None:
    """Log an old name, once in a process and on rank 0 alone."""
    logging.getLogger(__name__).warning("%s is now called %s", old, RENAMED[old], extra=ONCE)
