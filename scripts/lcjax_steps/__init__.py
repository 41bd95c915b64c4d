"""Whole training steps of large models on a GPU: what bench_step.py times and profile_step.py looks into."""
