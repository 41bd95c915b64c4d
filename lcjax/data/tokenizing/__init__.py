"""Encodes texts as token ids: in parts, exactly, and stored for the next run."""
