"""The life and the end of one rank, the local launcher, and signals."""
