"""Numbers with their nouns."""


def counted(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
