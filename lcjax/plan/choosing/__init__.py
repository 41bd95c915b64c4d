"""Chooses settings for a memory budget: candidates, their estimated time, the search among them."""
