"""Compiles the training step for a GPU, which may be absent, and measures its memory."""
