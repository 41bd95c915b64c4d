"""The training step as it would run on an H100: the kernels are in it, and nothing of attention runs twice under `offload_attn`."""

from __future__ import annotations

import collections
import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from lcjax import lora
from lcjax.config import LlamaConfig, LoraConfig
from lcjax.deviceless import abstract, compile_lowered, gpu_sharding
from lcjax.model import ModelSettings
from lcjax.step import BATCH_KEYS, Objective, init_state, train_step
from lcjax.weights.names import tensor_names

TOKENS = 131_072
# Llama-3.1-8B with two of its layers; depth does not change the program, only the scan's length.
CONFIG = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=2,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131_072,
)


def abstract_params() -> dict:
    params: dict = {}
    for name in tensor_names(CONFIG):
        node = params
        for part in name.path[:-1]:
            node = node.setdefault(part, {})
        shape = name.shape if name.layer is None else (CONFIG.num_hidden_layers, *name.shape)
        node[name.path[-1]] = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    return params


def kernels_of_step(policy: str, attention: str) -> collections.Counter:
    """How often each kernel stands in the compiled step."""
    adapter = LoraConfig(r=8, lora_alpha=16)
    settings = ModelSettings(TOKENS, lora=adapter, use_gradient_checkpointing=policy, attention=attention)
    init = functools.partial(lora.init_adapter, CONFIG, adapter)
    params = lora.attach(abstract_params(), jax.eval_shape(init, jax.random.key(0)))
    trainable, frozen = lora.partition(params, lora.trainable_mask(params, lora.adapters_only))
    optimizer = optax.adamw(1e-4)
    state = jax.eval_shape(lambda trainable: init_state(optimizer, trainable, 0), trainable)
    batches = {name: jax.ShapeDtypeStruct((1, 1, TOKENS), jnp.int32) for name in BATCH_KEYS}
    step = functools.partial(train_step, Objective(CONFIG, settings), optimizer)
    arguments = abstract((state, frozen, batches), gpu_sharding("h100-80gb"))
    text = compile_lowered(jax.jit(step, donate_argnums=0).lower(*arguments)).as_text()
    assert text is not None
    return collections.Counter(re.findall(r'name = "(attention_\w+|rope)"', text))


@pytest.mark.parametrize(
    ("policy", "attention", "expected"),
    [
        # The layer runs again in the backward pass, but for what the policy keeps; RoPE's own backward pass makes it three.
        ("offload", "pallas", {"attention_forward": 2, "attention_dq": 1, "attention_dkv": 1, "rope": 3}),
        ("offload_attn", "pallas", {"attention_forward": 1, "attention_dq": 1, "attention_dkv": 1, "rope": 3}),
        ("offload", "xla", {}),
    ],
)
def test_the_step_contains_the_kernels(policy, attention, expected):
    assert kernels_of_step(policy, attention) == expected
