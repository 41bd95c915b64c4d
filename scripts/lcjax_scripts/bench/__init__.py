"""Speed and memory: kernels, and training steps."""
