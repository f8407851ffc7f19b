"""What the planner knows of a model and of the hardware."""
