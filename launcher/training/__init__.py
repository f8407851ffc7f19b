"""The training loop: building, steps, schedules."""
