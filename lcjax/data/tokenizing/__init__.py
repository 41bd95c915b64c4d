"""From texts to token ids: encoded in parts, exactly, and stored for the next run."""
