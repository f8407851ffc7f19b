"""What can be wrong with weights."""

from collections.abc import Sequence

from swin_moe.errors import ModelError


class WeightsError(ModelError):
    """Weights that cannot be read, do not fit or cannot be written; the message names file and fix."""


class NoClassifierError(WeightsError):
    """Weights of a model without a classifier, for a model that has one."""


def some(names: Sequence[str], most: int = 4) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
