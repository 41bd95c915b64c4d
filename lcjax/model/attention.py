"""Grouped-query self-attention with rotary positions.

Shapes: B batch, T tokens, D hidden size, H query heads, K key/value heads, d head_dim.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lcjax import ops
from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.memory import check_head_groups
from lcjax.model.context import Context
from lcjax.model.linear import Linear, outputs_of, part_of
from lcjax.model.norm import RMSNorm
from lcjax.model.views import attention_by_view
from lcjax.ops.attention.parallel import passes_over
from lcjax.ops.attention.registry import backend_of
from lcjax.ops.dropout import DropoutKey, split_key
from lcjax.ops.residuals import PROJECTION, name_residual

Tree = dict[str, Any]


class SelfAttention(nnx.Module):
    """Grouped-query causal self-attention with rotary positions.

    Queries and keys are normalized if the family of the model does so.
    """

    def __init__(self, tree: Tree, config: LlamaConfig, lora: LoraConfig | None):
        # A family has a map for each of them, or one map for all.
        self.maps = ("qkv_proj",) if "qkv_proj" in tree else ("q_proj", "k_proj", "v_proj")
        for name in self.maps:
            setattr(self, name, Linear(tree[name], lora))
        self.o_proj = Linear(tree["o_proj"], lora)
        self.q_norm = RMSNorm(tree["q_norm"], config) if "q_norm" in tree else None
        self.k_norm = RMSNorm(tree["k_norm"], config) if "k_norm" in tree else None
        self.has_separate_heads = config.family.has_separate_heads
        self.sinks = nnx.Param(tree["sinks"]) if "sinks" in tree else None
        self.head_dim = config.head_dim
        self.q_heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads

    def project(self, x_BTD: jax.Array, context: Context, dropout_key: DropoutKey | None) -> tuple[jax.Array, ...]:
        """(queries [B, T, H, d], keys [B, T, K, d], values [B, T, K, d]), with RoPE applied."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        maps, keys = [getattr(self, name) for name in self.maps], split_key(dropout_key, len(self.maps))
        outputs = zip((self.q_norm, self.k_norm, None), outputs_of(maps, x_BTD, keys, self._sizes), strict=True)
        q_BTHd, k_BTKd, v_BTKd = (_normed(norm, x_BTF).reshape(heads) for norm, x_BTF in outputs)
        q_BTHd, k_BTKd = ops.rope(
            q_BTHd,
            k_BTKd,
            context.positions_BT,
            context.rotation.inverse_frequencies_F,
            attention_factor=context.rotation.attention_factor,
            implementation=context.rope,
        )
        q_BTHd, k_BTKd, v_BTKd = (name_residual(x, PROJECTION) for x in (q_BTHd, k_BTKd, v_BTKd))
        return q_BTHd, k_BTKd, v_BTKd

    def heads(self, group: jax.Array, groups: int) -> SelfAttention:
        """One of `groups` equal groups of the key/value heads, with their queries.

        The sum of the groups' outputs is the output of the whole.

        Raises:
          InputError: the number of key/value heads is not a multiple of the number of groups, or a
            norm is over all heads.
        """
        check_head_groups(groups, self.kv_heads, self.has_separate_heads)
        own = copy.copy(self)
        own.q_heads, own.kv_heads = self.q_heads // groups, self.kv_heads // groups
        for name in self.maps:
            sections = self._sizes if len(self.maps) == 1 else None
            setattr(own, name, getattr(self, name).rows(group, groups, sections))
        own.o_proj = self.o_proj.columns(group, groups)
        if self.sinks is not None:
            own.sinks = nnx.Param(part_of(self.sinks[...], group, groups, axis=0))
        return own

    @property
    def sinks_H(self) -> jax.Array | None:
        """The logits that join the softmax of each head, float32; None if the family has none."""
        return None if self.sinks is None else self.sinks[...].astype(jnp.float32)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """The features of queries, keys and values."""
        return self.q_heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim

    def output(self, out_BTHd: jax.Array, dropout_key: DropoutKey | None) -> jax.Array:
        return self.o_proj(out_BTHd.reshape(*out_BTHd.shape[:2], -1), dropout_key)


def _normed(norm: RMSNorm | None, x_BTF: jax.Array) -> jax.Array:
    """Queries or keys [B, T, features of all heads], normalized over as many as the norm has."""
    if norm is None:
        return x_BTF
    return norm(x_BTF.reshape(*x_BTF.shape[:2], -1, norm.weight[...].shape[-1]))


def attend(
    q_BTHd: jax.Array,
    k_BSKd: jax.Array,
    v_BSKd: jax.Array,
    context: Context,
    *,
    sinks_H: jax.Array | None = None,
    query_offset: int | jax.Array | None = None,
) -> jax.Array:
    """A layer's attention: causal, within segments, and limited by the layer's `AttentionView`.

    Query 0 is at key index `query_offset`. None aligns the last query with the last key. If devices
    share the sequence, the offset must be None.
    """
    backend, ids_BT = backend_of(context.attention), context.segment_ids_BT
    if context.view is not None and query_offset is None and backend.has_passes:
        passes = passes_over(context.mesh, backend)
        return attention_by_view(passes, context.views, context.view, q_BTHd, k_BSKd, v_BSKd, sinks_H, ids_BT)

    def run(q_BTHd, k_BSKd, v_BSKd, sinks_H, sees):
        if context.mesh.context > 1:
            assert query_offset is None, "keys of a cache are on one device"
            return passes_over(context.mesh, backend).run(q_BTHd, k_BSKd, v_BSKd, sinks_H, ids_BT, sees)
        return ops.attention(
            q_BTHd,
            k_BSKd,
            v_BSKd,
            window=sees.window,
            query_segments_BT=ids_BT,
            key_segments_BS=ids_BT,
            query_offset=query_offset,
            soft_cap=sees.soft_cap,
            sinks_H=sinks_H,
            scale=sees.scale,
            implementation=context.attention,
        )

    return context.by_view(run, q_BTHd, k_BSKd, v_BSKd, sinks_H)
