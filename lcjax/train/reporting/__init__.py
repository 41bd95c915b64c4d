"""What a run reports: on the terminal, in its records and in pictures."""
