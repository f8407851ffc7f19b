"""Rules across the sections of a configuration, and across a resume."""
