"""The memory of a rank, predicted."""
