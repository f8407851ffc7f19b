"""The commands on checkpoints: list, compare, import."""
