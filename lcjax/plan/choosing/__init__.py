"""Choosing the settings of a run for a memory budget: candidates, their estimated time, and the search for one that fits."""
