"""From texts to token ids: in parts that are encoded apart, exactly, and stored for the next run."""
