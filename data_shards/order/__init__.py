"""Which sample stands at each position of a training stream, as a function of the position."""
