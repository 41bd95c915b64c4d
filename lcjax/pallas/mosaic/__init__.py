"""Attention kernels for Hopper GPUs, on Pallas' Mosaic GPU backend."""
