"""The arguments of each command. Nothing here imports torch, so that help and errors come at once."""
