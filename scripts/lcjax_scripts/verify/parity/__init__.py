"""The parity harness: the process of each side, the verdicts, and the report."""
