"""Helpers that tests share: oracles, shapes, small models, processes, and readers of programs."""
