"""What is saved for the backward pass: on the device, in pinned host memory, or nothing.

The layers run under one `jax.checkpoint`. Tensors that a policy may save have names. The table
gives bytes per layer and token. D is the hidden size and H * head_dim the width of the attention
output. An element has 2 bytes in bfloat16. The log-sum-exp is float32; for float32 inputs it has
two parts.

| policy | device | pinned host | recomputed |
| --- | --- | --- | --- |
| none | every result of a matrix product or of attention | 0 | norms and activations |
| full | 2 D | 0 | the layer |
| offload (alias unsloth) | 0 | 2 D | the layer |
| offload_attn | 0 | 2 D + 2 H head_dim + 4 H | the layer except its attention |

Source: Chen et al., arXiv 1604.06174. The offload to host memory corresponds to Unsloth's
`use_gradient_checkpointing="unsloth"`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lcjax.ops.residuals import ATTENTION_LSE, ATTENTION_OUTPUT, LAYER_INPUT, LOW_RANK, MIDDLE, PROJECTION


def checkpoint_layer(layer: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """The body of the scan over layers, with rematerialization by `policy` (one of POLICIES)."""
    if policy == "none":
        # Recomputing position-wise results is cheaper than writing them to memory and reading them
        # back in every layer.
        keep = jax.checkpoint_policies.save_only_these_names(
            MIDDLE, PROJECTION, LOW_RANK, ATTENTION_OUTPUT, ATTENTION_LSE
        )
        return jax.checkpoint(layer, policy=keep, prevent_cse=False)
    if policy == "full":
        # The scan already saves its carry, which is the layer's input.
        return jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
    offloaded = [LAYER_INPUT]
    if policy == "offload_attn":
        offloaded += [ATTENTION_OUTPUT, ATTENTION_LSE]
    offload = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=offloaded,
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(layer, policy=offload, prevent_cse=False)
