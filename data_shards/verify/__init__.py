"""Checking shards against their index, and mending what is damaged."""
