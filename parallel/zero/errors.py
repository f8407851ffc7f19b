"""Errors of teachers and of a task's state, in a module that imports no DeepSpeed."""


class TeacherError(ValueError):
    """A teacher that does not fit the student, or another teacher than before; the message names both."""


class StateError(ValueError):
    """A tensor that a checkpoint cannot keep, or that differs between ranks; the message names it."""
