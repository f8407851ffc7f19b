"""The errors of configurations."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists every error, one a line."""


class TaskError(ValueError):
    """There is no such task, or it cannot be imported."""
