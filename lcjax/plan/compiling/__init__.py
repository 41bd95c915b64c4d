"""Compiling the training step, for a GPU that need not be present, and reading its memory from the compiler's output."""
