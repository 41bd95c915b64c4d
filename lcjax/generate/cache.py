"""Keys and values of the tokens so far, and the forward pass of the next tokens.

The cache has a fixed size, so that one program serves every step. Entries beyond its `length` are
ignored: no query sees a later key, and the next tokens overwrite them. So a chunk may be padded
with any tokens. Layers with a window keep only the last tokens. Several devices have different
heads.

Shapes: B batch, T new tokens, S the cache's size in tokens, D hidden size, H query heads, K
key/value heads, d head_dim, L layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lcjax.config.parallel.mesh import ONE_DEVICE, copies_of_kv
from lcjax.generate.exchange import Exchange
from lcjax.generate.spans import Span, Visible, empty_spans, span_of_layer
from lcjax.memory import layer_numbers, scan_layers
from lcjax.model import Llama
from lcjax.model.attention import attend
from lcjax.model.context import Context
from lcjax.parallel.devices import CACHE, ON_ONE, WHOLE, Devices


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the first `length` (int32) tokens, by the tokens that layers keep.

    If there are more devices than key/value heads, the heads of the spans count their copies.
    """

    spans: tuple[Span, ...]
    length: jax.Array

    @classmethod
    def empty(cls, model: Llama, capacity: int, batch: int = 1, devices: Devices = ON_ONE) -> KVCache:
        """An empty cache for `capacity` tokens: 2 K d numbers per layer, token and sequence.

        Layers with a window keep only the last tokens.
        """
        config = model.config
        heads = config.num_key_value_heads * copies_of_kv(devices.shape.heads, config.num_key_value_heads)
        return cls(empty_spans(config, capacity, batch, heads, model.dtype, devices), jnp.int32(0))

    def parts(self) -> KVCache:
        """Which part of each array a device has, as a tree of specs."""
        return jax.tree.map(lambda x: CACHE if x.ndim > 1 else WHOLE, self)

    def up_to(self, tokens: int) -> KVCache:
        """The cache of the first `tokens` tokens, or an empty one.

        It is empty if a layer with a window no longer has what they need.
        """
        if all(span.has(tokens) for span in self.spans):
            return dataclasses.replace(self, length=jnp.int32(tokens))
        spans = tuple(dataclasses.replace(span, first=jnp.int32(0)) for span in self.spans)
        return KVCache(spans, jnp.int32(0))


def extend(
    model: Llama,
    cache: KVCache,
    tokens_BT: jax.Array,
    count: int | jax.Array,
    sequence_length: jax.Array | None = None,
) -> tuple[jax.Array, KVCache]:
    """The forward pass of tokens that follow those in the cache, as each device calls it.

    Memory in addition to the cache is O(T + S): a chunk, and one layer's keys and values. A donated
    cache is updated in place.

    Args:
      tokens_BT: int32; those from `count` on are padding, and their hidden states are meaningless.
      count: 1, ..., T; may be traced. cache.length + T must not exceed S.
      sequence_length: int32, the length of the prompt that these tokens are a chunk of, for kinds
        of RoPE that depend on it; if None, the length up to the last valid token.

    Returns:
      (hidden states [B, T, D], the cache with `count` more tokens)
    """
    exchange = Exchange(model.settings.execution.mesh.heads, tokens_BT.shape[1])
    positions_T = cache.length + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
    positions_BT = jnp.broadcast_to(positions_T[None], tokens_BT.shape)
    length = cache.length + count if sequence_length is None else sequence_length
    # Each device attends with its own heads to all keys, as a single device would.
    context = model.context(exchange.own_tokens(positions_BT), None, length)
    context = dataclasses.replace(context, mesh=ONE_DEVICE)
    structure, stacked_params = nnx.split(model.layers)

    def one_layer(carry, i, params):
        x_BTD, spans = carry
        layer, own = nnx.merge(structure, params), context.of_layer(i)
        q_BTHd, k_BTKd, v_BTKd = layer.before_attention(x_BTD, own, None)
        q_BTHd, *new = exchange.own_heads(q_BTHd), exchange.own_kv_heads(k_BTKd), exchange.own_kv_heads(v_BTKd)
        # The spans are carried through the loop and updated in place. As results of the scan, all
        # layers' keys and values would exist twice.
        spans, visible = zip(*(span.add(i, tuple(new), cache.length, count) for span in spans), strict=True)
        sinks_H = exchange.own_sinks(layer.self_attn.sinks_H)
        out_BTHd = _attend(q_BTHd, sinks_H, spans, visible, own, i)
        out_BTHd = exchange.all_heads(out_BTHd)
        return (layer.after_attention(x_BTD, out_BTHd), spans), None

    start = model.embed_tokens(exchange.own_tokens(tokens_BT)), cache.spans
    layers = layer_numbers(model.config.num_hidden_layers)
    (x_BTD, spans), _ = scan_layers(one_layer, start, layers, stacked_params)
    spans = tuple(span.after(cache.length, count) for span in spans)
    return exchange.all_tokens(model.norm(x_BTD)), KVCache(spans, cache.length + count)


def _attend(
    q_BTHd: jax.Array,
    sinks_H: jax.Array | None,
    spans: tuple[Span, ...],
    visible: tuple[Callable[[], Visible], ...],
    context: Context,
    layer: jax.Array,
) -> jax.Array:
    """Attention of a layer, to what its span has."""

    def to(span: Span, of_span: Callable[[], Visible]) -> jax.Array:
        seen = of_span()
        own = context.among([context.view_of_layer[number] for number in span.layers])
        return attend(q_BTHd, seen.keys_BSKd, seen.values_BSKd, own, sinks_H=sinks_H, query_offset=seen.offset)

    if len(spans) == 1:
        return to(spans[0], visible[0])
    calls = [functools.partial(to, *pair) for pair in zip(spans, visible, strict=True)]
    return lax.switch(span_of_layer(spans, layer), calls)
