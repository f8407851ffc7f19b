"""Heads on a backbone, one module a head."""
