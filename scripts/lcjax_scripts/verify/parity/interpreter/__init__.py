"""Triton's interpreter, made to round like a GPU and to run faster."""
