"""Tables of text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, right: bool = False, indent: str = "") -> list[str]:
    """A line for each row, with columns of equal width.

    Args:
        rows: of equally many cells.
        right: align the cells to the right, as numbers; otherwise to the left.
        indent: what each line begins with.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append("  ".join(text.rjust(width) if right else text.ljust(width) for text, width in cells))
    return [f"{indent}{line}".rstrip() for line in lines]
