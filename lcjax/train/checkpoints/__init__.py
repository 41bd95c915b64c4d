"""Exact resume: verified checkpoints, and the output folder, used by one run at a time."""
