"""Softmax attention with grouped heads, packed documents, masks and score functions.

api.py          `lcjax.ops.attention`
call.py         one call, checked, as implementations receive it
masks.py        which query sees which key, for pairs of tokens and for blocks
backend.py      the interface of an implementation
registry.py     which implementation computes a call, and why another one cannot
reference.py    the specification: plain code with quadratic memory
passes.py       forward and backward pass as two calls, for tiled layers
xla.py          the XLA implementation with O(T) memory; block_pairs.py has its loops
cudnn.py fa3.py the attention kernels of two CUDA libraries; cuda_libraries.py their common limits
"""
