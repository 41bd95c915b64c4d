"""The parity harness of scripts/parity.py: both sides' processes, the verdict, the report."""
