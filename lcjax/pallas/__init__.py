"""GPU kernels in Pallas: `triton/` lowers through Triton; `schedule.py` has the order of blocks."""
