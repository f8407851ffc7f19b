"""Random draws that depend on (seed, sample, place in the model) alone."""
