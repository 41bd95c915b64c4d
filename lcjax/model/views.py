"""Attention of a layer whose view is known only when it runs, among the views of all layers.

A scan over layers that differ needs one program for all of them. It contains the kernels of every
view, and a branch selects those of the current layer.

Shapes: B batch, T tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.config.families import AttentionView
from lcjax.ops.attention.passes import Passes
from lcjax.ops.residuals import ATTENTION_LSE, ATTENTION_OUTPUT, name_residual

Views = tuple[AttentionView, ...]


def switch_views(views: Views, view: jax.Array, call: Callable[..., Any], *arrays: Any) -> Any:
    """`call(*arrays, views[view])`; each is compiled once, and only this one runs."""
    return lax.switch(view, [functools.partial(_with_view, call, seen) for seen in views], *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention_by_view(
    passes: Passes, views: Views, view: jax.Array, q_BTHD, k_BTKD, v_BTKD, sinks_H, segment_ids_BT
) -> jax.Array:
    """out [B, T, H, D] with what `views[view]` says; `view` is an int32 scalar.

    The branch is inside of the derivative rule. The derivative of a branch would save the residuals
    of every view.
    """
    return _forward(passes, views, view, q_BTHD, k_BTKD, v_BTKD, sinks_H, segment_ids_BT)[0]


def _forward(passes, views, view, q_BTHD, k_BTKD, v_BTKD, sinks_H, segment_ids_BT):
    out_BTHD, lse = switch_views(views, view, passes.forward, q_BTHD, k_BTKD, v_BTKD, sinks_H, segment_ids_BT)
    out_BTHD = name_residual(out_BTHD, ATTENTION_OUTPUT)
    lse = jax.tree.map(lambda x: name_residual(x, ATTENTION_LSE), lse)
    return out_BTHD, (view, (q_BTHD, k_BTKD, v_BTKD, sinks_H, segment_ids_BT), out_BTHD, lse)


def _backward(passes, views, residuals, dout_BTHD):
    view, arrays, out_BTHD, lse = residuals
    products_BTHD = out_BTHD.astype(jnp.float32) * dout_BTHD.astype(jnp.float32)
    delta_BHT = jnp.swapaxes(products_BTHD.sum(axis=-1), 1, 2)

    def backward(arrays, lse, dout_BTHD, delta_BHT, sees):
        return passes.backward(*arrays, sees, lse, dout_BTHD, delta_BHT)

    gradients = switch_views(views, view, backward, arrays, lse, dout_BTHD, delta_BHT)
    return None, *gradients, None


attention_by_view.defvjp(_forward, _backward)


def _with_view(call: Callable[..., Any], seen: AttentionView, *arrays: Any) -> Any:
    return call(*arrays, seen)
