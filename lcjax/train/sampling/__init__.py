"""Samples of the model's own text during a run: `prompts` reads a file, `samples` writes text."""
