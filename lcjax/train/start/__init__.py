"""What a new run starts from, if not from new weights: an adapter, or an earlier run's checkpoint.

flags.py   the flags that follow from it, and those that contradict it
model.py   the model that is trained, with its RoPE
point.py   the checkpoint of an earlier run
record.py  what the run's record, its checkpoints and its card say about it
state.py   the weights and the optimizer's state before the first step
"""
