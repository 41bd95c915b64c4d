"""Experiments on contexts beyond the trained length, and on resuming."""
