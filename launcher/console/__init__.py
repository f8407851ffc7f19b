"""Words and numbers for a person at a terminal."""
