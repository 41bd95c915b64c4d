"""What `scripts/bench_kernels.py` is made of."""
