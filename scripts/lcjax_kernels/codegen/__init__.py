"""What `scripts/kernel_report.py` is made of: kernels compiled without a GPU, and what their machine code says."""
