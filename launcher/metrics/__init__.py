"""Numbers of a step and of an evaluation: accumulated, logged, summarised."""
