"""The end of a message about an unknown name: the nearest known ones."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(
    name: str, known: Iterable[str], otherwise: str = "", *, prefix: str = "", most: int = 1
) -> str:
    """`did you mean NAME?`, or `otherwise` where no known name is near.

    Args:
        name: the unknown name.
        known: the names that there are.
        otherwise: the text without a near name.
        prefix: goes before each near name.
        most: near names to mention.
    """
    near = get_close_matches(name, list(known), most)
    return f"did you mean {' or '.join(f'{prefix}{one}' for one in near)}?" if near else otherwise
