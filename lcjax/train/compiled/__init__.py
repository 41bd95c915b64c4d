"""The compiled programs of a run, which a resumed run reuses."""
