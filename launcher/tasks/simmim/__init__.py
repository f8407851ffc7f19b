"""Masked image modeling: SimMIM (Xie et al. 2022, arXiv:2111.09886)."""
