"""The unit in which tars are written."""

BLOCK = 512
