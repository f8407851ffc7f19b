"""`swin-moe models --names`: the names of all recipes. No torch."""

import argparse

from swin_moe.errors import ModelError
from swin_moe.recipes import recipe_files


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Print the names of the recipes that contain a text; returns the exit status."""
    for name in matching_names(args.filter, list(recipe_files())):
        print(name)
    return 0


def matching_names(text: str, all_names: list[str]) -> list[str]:
    """The names that contain a text.

    Raises:
        ModelError: there is none.
    """
    names = [name for name in all_names if text in name]
    if not names:
        raise ModelError(f"no model has {text!r} in its name (--filter); without it all are listed")
    return names
