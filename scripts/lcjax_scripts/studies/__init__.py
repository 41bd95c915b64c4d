"""Experiments on long contexts, RoPE and exact resume."""
