"""Which weights a run ends with, and when it stops early: by the rows of evaluation.jsonl."""
