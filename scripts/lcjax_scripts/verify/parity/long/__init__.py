"""Shapes that are too long for a full reference, judged on samples of their rows."""
