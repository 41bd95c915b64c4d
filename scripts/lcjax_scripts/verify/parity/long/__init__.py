"""Shapes too long for a full reference, judged on some of their rows."""
