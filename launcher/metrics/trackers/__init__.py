"""Trackers of a run: TensorBoard in the process of rank 0, all others in a process each."""
