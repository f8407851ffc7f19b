"""The configuration of a run: options, loading, overrides, durations."""
