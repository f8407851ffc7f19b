"""The one error of this package that is meant for users."""


class DataError(ValueError):
    """A data set, a shard or an option is not as it must be; the message names it and suggests the fix."""
