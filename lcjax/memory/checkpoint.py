"""What the backward pass keeps of the forward pass: on the device, in pinned host memory, or not at all.

The layers run under one `jax.checkpoint`; tensors that a policy may keep carry a name. Bytes are per layer and token, with
D the hidden size, H * head_dim the width of the attention output, and 2 bytes an element in bfloat16 (the
log-sum-exp is float32, and in two parts where the inputs are):

| policy | device | pinned host | recomputed |
| --- | --- | --- | --- |
| none | every result of a product or of attention | 0 | norms and activations |
| full | 2 D | 0 | the layer |
| offload (alias unsloth) | 0 | 2 D | the layer |
| offload_attn | 0 | 2 D + 2 H head_dim + 4 H | the layer but its attention |

Source: Chen et al., arXiv 1604.06174; the offload to host memory stands in for Unsloth's
`use_gradient_checkpointing="unsloth"`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lcjax.ops.residuals import ATTENTION_LSE, ATTENTION_OUTPUT, LAYER_INPUT, LOW_RANK, MIDDLE, PROJECTION


def checkpoint_layer(layer: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """The body of the scan over layers, rematerialised as `policy` (one of POLICIES) says."""
    if policy == "none":
        # Position-wise results are cheaper to compute again than to write to memory and read back, layer by layer.
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
