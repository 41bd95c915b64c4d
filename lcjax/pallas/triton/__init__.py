"""Kernels of attention and RoPE that Pallas lowers through Triton."""
