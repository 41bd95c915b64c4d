"""Softmax attention with grouped heads, packed documents, masks and score functions.

api.py          `lcjax.ops.attention`
call.py         one call, checked, as implementations receive it
masks.py        who sees whom, pair by pair and block by block
registry.py     which implementation takes a call, and why another cannot
reference.py    the specification: obvious, quadratic
passes.py       forward and backward as two calls, for layers in tiles
xla.py          in XLA, in O(T) memory; block_pairs.py its loops
cudnn.py fa3.py attention of two libraries
"""
