"""The programs that a model becomes: one module a target."""
