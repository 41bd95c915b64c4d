"""cuDNN's attention, through `jax.nn.dot_product_attention`.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

import jax

from lcjax.errors import InputError
from lcjax.ops.attention.backend import Backend, Result
from lcjax.ops.attention.call import AttentionCall
from lcjax.ops.attention.cuda_libraries import INSTEAD, library_refusal


def cudnn_attention(
    q_BTHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, *, scale: float, causal: bool, window: int | None
) -> tuple[jax.Array, None]:
    """The calls of `lcjax.ops.attention` that `_refusal` accepts; no differentiable log-sum-exp.

    Largest safe size: 2^31 - 1 elements per array. Larger sizes are untested.

    Raises:
      InputError: the library is not installed. JAX reads its version, also when it compiles for a
        GPU that is not present.
    """
    try:
        out_BTHD = jax.nn.dot_product_attention(
            q_BTHD,
            k_BSKD,
            v_BSKD,
            scale=scale,
            is_causal=causal,
            # The number of keys before the query's own, which `window` includes, and after it.
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )
    except RuntimeError as error:
        if "cuDNN not found" not in str(error):
            raise
        raise InputError(
            "attention='cudnn' needs the library, which is not installed: pip install "
            "nvidia-cudnn-cu13, or use attention='pallas'"
        ) from error
    return out_BTHD, None


def _refusal(call: AttentionCall) -> str | None:
    tokens, keys = call.q_BTHD.shape[1], call.k_BSKD.shape[1]
    offset = call.query_offset if call.causal or call.window is not None else 0
    if tokens % 2 or keys % 2:
        return f"does not support {tokens} queries and {keys} keys; pad both to even numbers, or {INSTEAD}"
    if not (isinstance(offset, int) and offset == 0):
        return f"does not support causal masks and windows with query_offset={offset}; use {INSTEAD}"
    if call.window is not None and not call.causal:
        return f"does not support window={call.window} without causal; use {INSTEAD}"
    return library_refusal(call, largest_head_dim=128)


def _run(call: AttentionCall) -> Result:
    arrays = call.q_BTHD, call.k_BSKD, call.v_BSKD
    return cudnn_attention(*arrays, scale=call.scale, causal=call.causal, window=call.window)


BACKEND = Backend(name="cudnn", refusal=_refusal, run=_run, needs_gpu=True, order_of_sums="on request")
