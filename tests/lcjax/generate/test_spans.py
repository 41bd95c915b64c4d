"""Layers with a window keep only the last keys and values, and give the same logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax.generate import Generator, Sampling, generator, spans
from lcjax.generate.cache import KVCache, extend
from tests.support.oracles import make_oracle
from tests.support.shapes import MODEL_COMMON, MODELS

VOCABULARY = MODEL_COMMON["vocab_size"]
WINDOW, TOKENS, CAPACITY = 20, 120, 160
STORED = 32
CHUNKS = (24, 8)
MIXED, WINDOWS_ALONE = "ministral, alternating windows", "mistral, window"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small numbers, so that short texts are longer than what a window keeps."""
    monkeypatch.setattr(spans, "SPARE", 8)
    monkeypatch.setattr(spans, "MULTIPLE", 16)
    monkeypatch.setattr(generator, "CHUNKS", CHUNKS)


@pytest.fixture(scope="module", params=[MIXED, WINDOWS_ALONE])
def model(request, tmp_path_factory):
    return make_oracle(tmp_path_factory.mktemp("model"), adapter=False, **MODELS[request.param]).model()


@pytest.fixture(scope="module")
def text() -> list[int]:
    return np.random.default_rng(0).integers(0, VOCABULARY, TOKENS).tolist()


def test_logits_are_those_without_a_cache(model, text):
    read = jax.jit(extend)
    cache, found = KVCache.empty(model, CAPACITY), []
    sizes = [*[24] * 3, *[1] * (TOKENS - 3 * 24)]
    for begin, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        # Two more than what counts, so that a chunk has padding.
        chunk = np.full((1, size + 2 if size > 1 else 1), 5, np.int32)
        chunk[:, :size] = text[begin : begin + size]
        hidden_BTD, cache = read(model, cache, chunk, jnp.int32(size))
        found.append(model.logits(hidden_BTD)[:, :size])
    expected = model(jnp.asarray([text]))
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-4 * np.abs(expected).max())


def test_only_layers_without_a_window_have_all_tokens(model):
    cache = KVCache.empty(model, CAPACITY)
    windows = [view.window for view in model.config.views]
    assert {span.window: span.stored for span in cache.spans} == {
        window: CAPACITY if window is None else STORED for window in windows
    }
    assert sorted(layer for span in cache.spans for layer in span.layers) == list(range(model.config.num_hidden_layers))


def test_a_window_that_is_not_shorter_than_the_capacity_is_not_one(model):
    [span] = KVCache.empty(model, STORED).spans
    assert (span.window, span.stored) == (None, STORED)


def generated(found: Generator, prompt: list[int]) -> tuple[list[int], list[int]]:
    """Returns (tokens, how many tokens of the prompt were known after every chunk)."""
    done: list[int] = []
    tokens = list(found.generate(prompt, Sampling(), max_new_tokens=12, on_prefill=done.append))
    return tokens, done


@pytest.mark.parametrize(("shared", "is_reused"), [(TOKENS + 8, True), (TOKENS - 60, False)])
def test_a_prompt_that_begins_like_the_last_one(shared, is_reused, model, text):
    used = Generator(model, CAPACITY)
    tokens, _ = generated(used, text)
    prompt = [*[*text, *tokens][:shared], *[3] * 10]
    actual, done = generated(used, prompt)
    assert actual == generated(Generator(model, CAPACITY), prompt)[0]
    assert (done[0] > shared) == is_reused


def test_mutant_that_forgets_what_was_dropped(model, text, monkeypatch):
    prompt = [*text[: TOKENS - 60], *[3] * 20]
    used = Generator(model, CAPACITY)
    generated(used, text)
    monkeypatch.setattr(spans.Span, "has", lambda span, tokens: True)
    assert generated(used, prompt)[0] != generated(Generator(model, CAPACITY), prompt)[0]
