"""Names of the tensors that a backward pass may read again: what `jax.checkpoint` policies keep or send to host memory by name.

Operations and kernels give the names; `lcjax.memory.checkpoint` says which of them each policy keeps, and where.
"""

from __future__ import annotations

from jax.ad_checkpoint import checkpoint_name

LAYER_INPUT = "layer_input"
ATTENTION_OUTPUT = "attention_output"
ATTENTION_LSE = "attention_lse"
PROJECTION = "projection"  # queries, keys and values after RoPE; gate and up
LOW_RANK = "low_rank"  # an adapter's x A^T
MIDDLE = "layer_middle"  # the residual stream between attention and MLP

name_residual = checkpoint_name
