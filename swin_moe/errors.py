"""The error of this package, and a rule that raises it."""


class ModelError(ValueError):
    """A model that cannot be built; the message names the option and shows the values."""


def require(condition: bool, message: str) -> None:
    """Raise ModelError with `message` unless `condition` holds."""
    if not condition:
        raise ModelError(message)
