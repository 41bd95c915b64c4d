"""The GPU memory for reading a long prompt, compiled without a GPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcjax.config.presets import resolve_config
from lcjax.generate import generator
from lcjax.generate.cache import KVCache
from lcjax.generate.spans import Span
from lcjax.model import Llama
from lcjax.pallas.triton.block_sizes import traced_for
from lcjax.parallel.devices import ON_ONE
from lcjax.plan.compiling.aot import abstract, compile_lowered, gpu_sharding
from lcjax.plan.compiling.parameters import abstract_params
from tests.support.settings import model_settings

TOKENS = 131_072


def test_a_prompt_of_131072_tokens_needs_little_more_than_its_cache():
    """For Llama-3.1-8B, this is one layer's keys and values, and the activations of a chunk."""
    config = resolve_config("llama-3.1-8b")
    settings = model_settings(max_seq_length=TOKENS, attention="pallas")
    sharding = gpu_sharding("h100-80gb")

    def read(params, keys_LBSKd, values_LBSKd, tokens_BC, count):
        span = Span(keys_LBSKd, values_LBSKd, jnp.int32(0), tuple(range(config.num_hidden_layers)), None)
        cache = KVCache((span,), count)
        return generator.read_chunk.__wrapped__(ON_ONE, Llama(config, params, settings), cache, tokens_BC, count, count)

    chunk = max(generator.CHUNKS)
    shape = (config.num_hidden_layers, 1, TOKENS + chunk, config.num_key_value_heads, config.head_dim)
    half = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    tokens, count = jax.ShapeDtypeStruct((1, chunk), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    arguments = abstract((abstract_params(config, None, None), half, half, tokens, count), sharding)
    with traced_for(next(iter(sharding.device_set))):
        lowered = jax.jit(read, donate_argnums=(1, 2)).lower(*arguments)
    memory = compile_lowered(lowered).memory_analysis()
    cache_bytes = 2 * 2 * half.size
    assert memory.alias_size_in_bytes >= cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes / config.num_hidden_layers + 2**27
