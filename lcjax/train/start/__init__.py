"""What a new run starts from, if not from a new adapter: an adapter that was trained before.

flags.py   the flags that follow from it, and those that contradict it
model.py   the model that is trained, with its RoPE
record.py  what the run's record, its checkpoints and its card say about it
"""
