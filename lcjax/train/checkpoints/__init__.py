"""Exact resume: checkpoints, verified, and the output folder, which one run uses at a time."""
