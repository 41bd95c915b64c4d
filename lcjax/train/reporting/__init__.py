"""The reports of a run: on the terminal, in its records and in pictures."""
