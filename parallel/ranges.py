"""Closed ranges of numeric options, checked in the `__post_init__` of the dataclass that declares them."""

LARGEST = 2**31 - 1  # of a number of steps, blocks or checkpoints: it fits every integer type below
WEEK_S = 604800.0  # of a time limit


def check_ranges(
    prefix: str, options: object, *, error: type[ValueError] = ValueError, **ranges: tuple[float, float]
) -> None:
    """Check that numeric options lie in closed ranges; NaN lies in none.

    Args:
        prefix: of the dotted names, such as "model.moe.".
        options: the dataclass; an option may also be a tuple of numbers.
        error: the type to raise.
        ranges: the lowest and the highest value of each option by its name.

    Raises:
        ValueError: of type `error`, for the first option that lies outside of its range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        for number in value if isinstance(value, tuple) else (value,):
            shown = list(value) if isinstance(value, tuple) else value
            if not number >= low:
                raise error(f"{prefix}{name} ({shown}) must be at least {low}")
            if not number <= high:
                raise error(f"{prefix}{name} ({shown}) must be at most {high}")
