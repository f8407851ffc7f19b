"""The time of a step, predicted."""
