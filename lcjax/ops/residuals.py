"""Names of the tensors that may be saved for the backward pass.

Operations and kernels attach these names to their results. `jax.checkpoint` policies refer to them
to save a tensor on the device or to offload it to host memory. `lcjax.memory.checkpoint` defines
what each policy saves, and where.
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
