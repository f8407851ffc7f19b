"""Experts over the ranks: where each one lies, and how tokens or weights reach it."""
