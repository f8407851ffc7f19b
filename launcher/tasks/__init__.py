"""The kinds of training: one folder each, found by the registry."""
