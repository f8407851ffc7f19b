"""The error of this package."""


class ModelError(ValueError):
    """A model that cannot be built; the message names the option and shows the values."""
