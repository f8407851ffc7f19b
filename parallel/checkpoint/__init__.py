"""Checkpoints: staging, writing, committing, and reading them for any layout."""
