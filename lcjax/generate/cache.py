"""Keys and values of the tokens so far, and the forward pass of the next tokens.

The cache has a fixed size, so that one program serves every step. Entries beyond its `length` are
ignored: no query sees a later key, and the next tokens overwrite them. So a chunk may be padded
with any tokens, and setting `length` discards the rest. Several devices have different heads.

Shapes: B batch, T new tokens, S the cache's size in tokens, D hidden size, H query heads, K
key/value heads, d head_dim, L layers.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lcjax.config.parallel.mesh import ONE_DEVICE, copies_of_kv
from lcjax.generate.exchange import Exchange
from lcjax.memory import layer_numbers, scan_layers
from lcjax.model import Llama
from lcjax.model.attention import attend
from lcjax.parallel.devices import CACHE, ON_ONE, WHOLE, Devices


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Rotated keys and values [L, B, S, K, d] in the weights' dtype.

    Only the first `length` (int32 scalar) tokens are valid. If there are more devices than
    key/value heads, K counts their copies.
    """

    keys_LBSKd: jax.Array
    values_LBSKd: jax.Array
    length: jax.Array

    @classmethod
    def empty(cls, model: Llama, capacity: int, batch: int = 1, devices: Devices = ON_ONE) -> KVCache:
        """An empty cache for `capacity` tokens: 2 L S K d numbers per sequence."""
        config = model.config
        heads = config.num_key_value_heads * copies_of_kv(devices.shape.heads, config.num_key_value_heads)
        shape = (config.num_hidden_layers, batch, capacity, heads, config.head_dim)
        keys, values = (devices.zeros(shape, model.dtype, CACHE) for _ in range(2))
        return cls(keys, values, jnp.int32(0))

    @classmethod
    def parts(cls) -> KVCache:
        """Which part of each array a device has, as a tree of specs."""
        return cls(CACHE, CACHE, WHOLE)  # pyright: ignore[reportArgumentType]


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
        x_BTD, keys_LBSKd, values_LBSKd = carry
        layer, own = nnx.merge(structure, params), context.of_layer(i)
        q_BTHd, k_BTKd, v_BTKd = layer.before_attention(x_BTD, own, None)
        q_BTHd, k_BTKd, v_BTKd = (
            exchange.own_heads(q_BTHd),
            exchange.own_kv_heads(k_BTKd),
            exchange.own_kv_heads(v_BTKd),
        )
        # The caches are carried through the loop and updated in place. As results of the scan, all
        # layers' caches would exist twice.
        keys_LBSKd, values_LBSKd = (
            lax.dynamic_update_slice(whole, new[None], (i, 0, cache.length, 0, 0))
            for whole, new in ((keys_LBSKd, k_BTKd), (values_LBSKd, v_BTKd))
        )
        keys_BSKd, values_BSKd = (
            lax.dynamic_index_in_dim(whole, i, keepdims=False) for whole in (keys_LBSKd, values_LBSKd)
        )
        out_BTHd = attend(q_BTHd, keys_BSKd, values_BSKd, own, query_offset=cache.length)
        out_BTHd = exchange.all_heads(out_BTHd)
        return (layer.after_attention(x_BTD, out_BTHd), keys_LBSKd, values_LBSKd), None

    start = model.embed_tokens(exchange.own_tokens(tokens_BT)), cache.keys_LBSKd, cache.values_LBSKd
    layers = layer_numbers(model.config.num_hidden_layers)
    (x_BTD, keys_LBSKd, values_LBSKd), _ = scan_layers(one_layer, start, layers, stacked_params)
    return exchange.all_tokens(model.norm(x_BTD)), KVCache(keys_LBSKd, values_LBSKd, cache.length + count)
