"""The code of the command lines in scripts/."""
