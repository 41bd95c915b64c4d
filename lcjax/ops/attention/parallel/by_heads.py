"""Attention by heads: every device has all tokens of some heads while attention runs.

An all-to-all exchanges tokens for heads before attention, and another one heads for tokens after
it. Attention itself does not change. Every device has the same work whatever the mask.

Shapes: B batch, t tokens of a device, N devices, H query heads, K key/value heads, C copies of each
key/value head, D head_dim.
Source: Jacobs et al., DeepSpeed-Ulysses, arXiv 2309.14509.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.config.families import AttentionView
from lcjax.config.parallel.mesh import HEADS, copies_of_kv, divides_heads
from lcjax.errors import InputError
from lcjax.ops.attention.backend import Gradients
from lcjax.ops.attention.passes import Passes
from lcjax.ops.parts import part_of


@dataclasses.dataclass(frozen=True)
class ByHeads:
    """`inner` over the tokens of all `devices` along the axis `heads`, for a part of the heads."""

    inner: Passes
    devices: int

    def run(self, q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt, sees: AttentionView) -> jax.Array:
        arrays = *self._by_heads(q_BtHD, k_BtKD, v_BtKD), self._own_sinks(sinks_H)
        return _to_tokens(self.inner.run(*arrays, _gathered(segment_ids_Bt), sees))

    def forward(self, q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt, sees: AttentionView) -> tuple[jax.Array, Any]:
        arrays = *self._by_heads(q_BtHD, k_BtKD, v_BtKD), self._own_sinks(sinks_H)
        out, lse = self.inner.forward(*arrays, _gathered(segment_ids_Bt), sees)
        return _to_tokens(out), lse

    def backward(
        self, q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt, sees: AttentionView, lse: Any, dout_BtHD, delta_BHt
    ) -> Gradients:
        own_sinks, pull_back = jax.vjp(self._own_sinks, sinks_H)
        arrays = *self._by_heads(q_BtHD, k_BtKD, v_BtKD), own_sinks, _gathered(segment_ids_Bt), sees
        delta = lax.all_to_all(delta_BHt, HEADS, split_axis=1, concat_axis=2, tiled=True)
        dq, dk, dv, own_dsinks = self.inner.backward(*arrays, lse, _to_heads(dout_BtHD), delta)
        dk, dv = (self._sum_of_copies(_to_tokens(x), k_BtKD.shape[2]) for x in (dk, dv))
        [dsinks_H] = pull_back(own_dsinks)
        return _to_tokens(dq), dk, dv, dsinks_H

    def _by_heads(self, q_BtHD, k_BtKD, v_BtKD) -> tuple[jax.Array, jax.Array, jax.Array]:
        query_heads, kv_heads = q_BtHD.shape[2], k_BtKD.shape[2]
        if not divides_heads(self.devices, query_heads, kv_heads):
            raise InputError(
                f"{self.devices} GPUs cannot have equal parts of groups of {query_heads} query and {kv_heads} "
                "key/value heads; use fewer head_groups, or a smaller --ulysses-degree"
            )
        copies = copies_of_kv(self.devices, kv_heads)
        k, v = (x if copies == 1 else jnp.repeat(x, copies, axis=2) for x in (k_BtKD, v_BtKD))
        return _to_heads(q_BtHD), _to_heads(k), _to_heads(v)

    def _own_sinks(self, sinks_H: jax.Array | None) -> jax.Array | None:
        """The sinks of the heads that this device has while attention runs."""
        return None if sinks_H is None else part_of(sinks_H, lax.axis_index(HEADS), self.devices, 0)

    def _sum_of_copies(self, x_BtKCD: jax.Array, kv_heads: int) -> jax.Array:
        """The gradient of a key/value head from those of its copies, summed in float32."""
        copies = x_BtKCD.shape[2] // kv_heads
        if copies == 1:
            return x_BtKCD
        parts = x_BtKCD.reshape(*x_BtKCD.shape[:2], kv_heads, copies, x_BtKCD.shape[3])
        return parts.astype(jnp.float32).sum(axis=3).astype(x_BtKCD.dtype)


def _to_heads(x_BtHD: jax.Array) -> jax.Array:
    """From [B, t, H, D] to [B, N t, H / N, D]."""
    return lax.all_to_all(x_BtHD, HEADS, split_axis=2, concat_axis=1, tiled=True)


def _to_tokens(x: jax.Array) -> jax.Array:
    """The inverse of `_to_heads`."""
    return lax.all_to_all(x, HEADS, split_axis=1, concat_axis=2, tiled=True)


def _gathered(segment_ids_Bt: jax.Array | None) -> jax.Array | None:
    return None if segment_ids_Bt is None else lax.all_gather(segment_ids_Bt, HEADS, axis=1, tiled=True)
