"""The backbones: blocks, attention, windows, position bias, patches."""
