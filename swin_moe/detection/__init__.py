"""Object detection and instance segmentation on the maps of any backbone."""
