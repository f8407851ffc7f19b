"""Which process this is: discovery, groups, collectives, and the device of a rank."""
