"""Compares logits with the cache, in chunks and token by token, with transformers without it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lcjax.generate.cache import KVCache, extend
from tests.support.numerics import error_ratio
from tests.support.oracles import QUICK_TO_COMPILE, make_batch, make_oracle, to_numpy, torch_logits
from tests.support.shapes import MODEL_COMMON, MODELS

VOCABULARY = MODEL_COMMON["vocab_size"]
TOKENS = 61
# Chunks of 24, the last one padded, then single tokens. The cache ends within a chunk.
CHUNK, FILLED, ROOM = 24, 54, 80


@functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE, donate_argnames="cache")
def read(model, cache, tokens_BT, count, sequence_length=None):
    hidden_BTD, cache = extend(model, cache, tokens_BT, count, sequence_length)
    return model.logits(hidden_BTD), cache


def cached_logits(model, tokens_BT, start: int = 0, sequence_length: int | None = None) -> np.ndarray:
    """Returns the logits of all tokens: 54 in chunks, the last padded, the others one at a time."""
    cache = KVCache.empty(model, ROOM, len(tokens_BT))
    cache = dataclasses.replace(cache, length=jnp.int32(start))
    parts = []
    spans = [(at, min(at + CHUNK, FILLED)) for at in range(0, FILLED, CHUNK)]
    spans += [(at, at + 1) for at in range(FILLED, TOKENS)]
    for begin, stop in spans:
        size = CHUNK if begin < FILLED else 1
        chunk = np.full((len(tokens_BT), size), 7, np.int32)
        chunk[:, : stop - begin] = tokens_BT[:, begin:stop]
        logits, cache = read(model, cache, chunk, jnp.int32(stop - begin), sequence_length)
        parts.append(logits[:, : stop - begin])
    assert int(cache.length) == start + TOKENS
    return np.concatenate(parts, axis=1)


@pytest.fixture(scope="module", params=["tied gqa 4, llama3 rope", "bfloat16 biases, tied"])
def oracle(request, tmp_path_factory):
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS[request.param])


def test_cached_logits_and_mutants(oracle):
    """The adapter is not merged. The mutants are a position off by one, and visible padding."""
    batch = make_batch(VOCABULARY, 2, TOKENS)
    model = oracle.model()
    with torch.no_grad():
        plain, exact = (to_numpy(torch_logits(m, batch)) for m in (oracle.plain, oracle.exact))
    assert error_ratio(cached_logits(model, batch["tokens"]), plain, exact) <= 1
    assert error_ratio(cached_logits(model, batch["tokens"], start=1), plain, exact) > 1


def test_dynamic_rope_uses_the_length_of_the_whole_prompt(tmp_path):
    """Its frequencies depend on the sequence length, which is that of the prompt for all chunks."""
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
    oracle = make_oracle(tmp_path, **MODELS["tied gqa 1"], rope_parameters=rope, max_position_embeddings=32)
    batch, model = make_batch(VOCABULARY, 1, TOKENS), oracle.model()
    with torch.no_grad():
        plain, exact = (to_numpy(torch_logits(m, batch)) for m in (oracle.plain, oracle.exact))
    assert error_ratio(cached_logits(model, batch["tokens"], sequence_length=TOKENS), plain, exact) <= 1
    assert error_ratio(cached_logits(model, batch["tokens"]), plain, exact) > 1


def test_the_padding_of_a_chunk_does_not_count(oracle):
    batch = make_batch(VOCABULARY, 1, CHUNK)
    model, count = oracle.model(), 11
    after, filled = [], batch["tokens"].copy()
    filled[:, count:] = 3
    for tokens in (batch["tokens"], filled):
        _, cache = read(model, KVCache.empty(model, ROOM), tokens, jnp.int32(count))
        after.append(read(model, cache, batch["tokens"][:, :1], jnp.int32(1))[0])
    np.testing.assert_array_equal(*after)
    # One that must not count.
    _, cache = read(model, KVCache.empty(model, ROOM), filled, jnp.int32(count + 1))
    assert (np.asarray(read(model, cache, batch["tokens"][:, :1], jnp.int32(1))[0]) != after[0]).any()


def test_the_cache_is_written_in_place(tmp_path):
    """The result uses the memory of a donated cache; at most a few of its 16 layers are copied."""
    model = make_oracle(tmp_path, adapter=False, **MODELS["untied gqa 8, biases"], num_hidden_layers=16).model()
    cache = KVCache.empty(model, 200 * CHUNK)
    arguments = model, cache, jnp.zeros((1, CHUNK), jnp.int32), jnp.int32(1)
    size = sum(x.nbytes for x in jax.tree.leaves(cache.spans))

    memory = read.lower(*arguments).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 2
