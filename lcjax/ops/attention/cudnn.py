"""cuDNN's attention, through `jax.nn.dot_product_attention`.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

import jax

from lcjax.errors import InputError


def cudnn_attention(
    q_BTHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, *, scale: float, causal: bool, window: int | None
) -> tuple[jax.Array, None]:
    """The part of `lcjax.ops.attention` that `lcjax.ops.attention.registry` lets through; it has no differentiable log-sum-exp.

    Largest safe size: 2^31 - 1 elements an array, beyond which nothing is known.

    Raises:
      InputError: the library is not installed; it is asked for its version, also to compile for a GPU that is not there.
    """
    try:
        out_BTHD = jax.nn.dot_product_attention(
            q_BTHD,
            k_BSKD,
            v_BSKD,
            scale=scale,
            is_causal=causal,
            # The keys before the query's own, which the window counts too, and those after it.
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )
    except RuntimeError as error:
        if "cuDNN not found" not in str(error):
            raise
        raise InputError(
            "attention='cudnn' needs the library, which is not installed: pip install nvidia-cudnn-cu13, or use attention='pallas'"
        ) from error
    return out_BTHD, None
