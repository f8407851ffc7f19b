"""Frozen models of any origin that a student is trained against."""
