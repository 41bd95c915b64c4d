"""The benchmark of attention and RoPE kernels."""
