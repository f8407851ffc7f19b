"""Pixels: formats that are decoded, crops, and the geometry of an augmentation."""
