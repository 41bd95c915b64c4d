"""Compares the chunked loss with float64 logits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax.ops.cross_entropy import IGNORE, chunk_tokens, linear, linear_cross_entropy, token_cross_entropy
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.jaxprs import output_shapes
from tests.support.numerics import error_ratio, error_ratios

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# (tokens, hidden size, vocabulary). A chunk has 8,192 logits here: 81 tokens with the vocabulary of
# 101, and 4 tokens with the vocabulary of 2,003.
SHAPES = {
    "one chunk": (19, 36, 101),
    "last chunk not full": (173, 36, 101),
    "whole chunks": (162, 36, 101),
    "a few tokens a chunk": (27, 12, 2003),
    "one token": (1, 20, 101),
}


@pytest.fixture(autouse=True)
def small_chunks(request, monkeypatch):
    if "real_chunks" not in request.fixturenames:
        monkeypatch.setattr(linear, "chunk_tokens", lambda vocab_size: max(1, 8192 // vocab_size))


@pytest.fixture
def real_chunks():
    """Uses the default chunk size."""


def make_inputs(tokens, hidden_size, vocabulary, dtype=jnp.float32, ignored=0.3):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(tokens, hidden_size)), dtype)
    head = jnp.asarray(rng.normal(size=(vocabulary, hidden_size)), dtype)
    labels = rng.integers(0, vocabulary, tokens)
    labels[rng.random(tokens) < ignored] = IGNORE
    labels[0] = vocabulary - 1
    return hidden, head, jnp.asarray(labels, jnp.int32)


def plain_loss(hidden, head, labels, cap=None):
    logits = jnp.dot(hidden, head.T)
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, jnp.where(labels == IGNORE, 0, labels)[:, None], axis=1)[:, 0]
    return -jnp.where(labels == IGNORE, 0, picked).sum()


def with_gradients(objective, hidden, head, labels, dloss=0.37):
    """Returns (losses, dhidden, dhead) for a cotangent that is not 1.

    `losses` are those of 16 rotations of the labels, because the rounding error of a single scalar
    is a matter of chance.
    """

    def forward_and_backward(hidden, head, labels):
        _, pull_back = jax.vjp(lambda h, w: objective(h, w, labels), hidden, head)
        rotated = jnp.stack([jnp.roll(labels, shift) for shift in range(16)])
        losses = jax.lax.map(lambda y: objective(hidden, head, y), rotated)
        return (losses, *pull_back(jnp.asarray(dloss, losses.dtype)))

    return jax.jit(forward_and_backward, compiler_options=QUICKEST_TO_COMPILE)(hidden, head, labels)


def references(hidden, head, labels, cap=None):
    loss = functools.partial(plain_loss, cap=cap)
    plain = with_gradients(loss, hidden, head, labels)
    with jax.enable_x64(True):
        wide = with_gradients(loss, *(x.astype(jnp.float64) for x in (hidden, head)), labels)
        return plain, jax.tree.map(np.asarray, wide)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_value_and_gradients(name, dtype):
    inputs = make_inputs(*SHAPES[name], DTYPES[dtype])
    ratios = error_ratios(with_gradients(linear_cross_entropy, *inputs), *references(*inputs))
    assert max(ratios) <= 1


def test_large_logits():
    hidden, head, labels = make_inputs(*SHAPES["last chunk not full"])
    inputs = hidden * 100, head, labels
    assert max(error_ratios(with_gradients(linear_cross_entropy, *inputs), *references(*inputs))) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_capped_logits(dtype):
    """The logits have a standard deviation of 6, and some are close to the cap."""
    inputs = make_inputs(*SHAPES["last chunk not full"], DTYPES[dtype])
    expected = references(*inputs, cap=5.0)

    def ratio(cap):
        loss = functools.partial(linear_cross_entropy, cap=cap)
        return max(error_ratios(with_gradients(loss, *inputs), *expected))

    assert ratio(5.0) <= 1
    assert min(map(ratio, (None, 5.1))) > 1
    hits = [token_cross_entropy(*inputs, cap=cap).hits for cap in (None, 5.0)]
    np.testing.assert_array_equal(*hits)


def test_all_ignored_gives_exact_zeros():
    hidden, head, labels = make_inputs(*SHAPES["last chunk not full"])
    for result in with_gradients(linear_cross_entropy, hidden, head, jnp.full_like(labels, IGNORE)):
        np.testing.assert_array_equal(result, 0)


def test_ignored_tokens_have_no_gradient_and_no_effect():
    hidden, head, labels = make_inputs(*SHAPES["last chunk not full"])
    ignored = labels == IGNORE
    value, dhidden, dhead = with_gradients(linear_cross_entropy, hidden, head, labels)
    np.testing.assert_array_equal(dhidden[ignored], 0)
    assert (jnp.abs(dhidden[~ignored]).max(axis=1) > 0).all()
    hidden = jnp.where(ignored[:, None], 1e3, hidden)
    other_value, _, other_dhead = with_gradients(linear_cross_entropy, hidden, head, labels)
    np.testing.assert_array_equal(other_value[0], value[0])
    np.testing.assert_array_equal(other_dhead, dhead)


def test_mutants_fail():
    hidden, head, labels = make_inputs(*SHAPES["last chunk not full"])
    mutants = {
        "ignored tokens counted": lambda h, w, y: linear_cross_entropy(h, w, jnp.maximum(y, 0)),
        "labels shifted": lambda h, w, y: linear_cross_entropy(h, w, jnp.roll(y, 1)),
        "last token lost": lambda h, w, y: linear_cross_entropy(h[:-1], w, y[:-1]),
        "mean": lambda h, w, y: linear_cross_entropy(h, w, y) / len(y),
        "last word lost": lambda h, w, y: linear_cross_entropy(h, w.at[0].set(0), y),
    }
    expected = references(hidden, head, labels)
    for name, mutant in mutants.items():
        assert min(error_ratios(with_gradients(mutant, hidden, head, labels), *expected)) > 1, name


def test_dropped_cotangent_fails():
    """The mutant is correct only for a cotangent of 1, so `.sum()` would not detect it."""
    inputs = make_inputs(*SHAPES["last chunk not full"])
    expected = references(*inputs)
    ratios = error_ratios(with_gradients(linear_cross_entropy, *inputs, dloss=1.0), *expected)
    assert ratios[0] <= 1
    assert min(ratios[1:]) > 1


@functools.partial(jax.jit, compiler_options=QUICKEST_TO_COMPILE)
def plain_token_losses(hidden, head, labels):
    """Returns `plain_loss` of every token."""
    return jax.vmap(lambda h, y: plain_loss(h[None], head, y[None]))(hidden, labels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_losses_of_single_tokens(name, dtype):
    hidden, head, labels = make_inputs(*SHAPES[name], DTYPES[dtype])
    actual = token_cross_entropy(hidden, head, labels).losses
    plain = plain_token_losses(hidden, head, labels)
    with jax.enable_x64(True):
        exact = np.asarray(plain_token_losses(*(x.astype(jnp.float64) for x in (hidden, head)), labels))
    assert (actual.shape, actual.dtype) == (labels.shape, jnp.float32)
    assert error_ratio(actual, plain, exact) <= 1
    np.testing.assert_array_equal(actual[labels == IGNORE], 0)
    if len(labels) > 1:
        assert error_ratio(jnp.roll(actual, 1), plain, exact) > 1
        assert error_ratio(token_cross_entropy(hidden, head, jnp.maximum(labels, 0)).losses, plain, exact) > 1


def test_a_hit_is_the_most_likely_token():
    hidden, head, labels = make_inputs(*SHAPES["last chunk not full"])
    likeliest = jnp.dot(hidden, head.T).argmax(axis=1).astype(jnp.int32)
    labels = jnp.where(jnp.arange(len(labels)) % 3 == 0, likeliest, labels)
    np.testing.assert_array_equal(token_cross_entropy(hidden, head, labels).hits, labels == likeliest)


TOKENS, HIDDEN, VOCABULARY = 70, 12, 500_009
ABSTRACT = (
    jax.ShapeDtypeStruct((TOKENS, HIDDEN), jnp.float32),
    jax.ShapeDtypeStruct((VOCABULARY, HIDDEN), jnp.float32),
    jax.ShapeDtypeStruct((TOKENS,), jnp.int32),
)


def computed_shapes(objective, argnums) -> set[tuple[int, ...]]:
    return output_shapes(jax.make_jaxpr(jax.grad(objective, argnums))(*ABSTRACT))


def head_shaped(shapes) -> set[tuple[int, ...]]:
    return {(VOCABULARY, HIDDEN), (HIDDEN, VOCABULARY)} & shapes


def test_a_frozen_head_gets_no_gradient():
    assert not head_shaped(computed_shapes(linear_cross_entropy, 0))
    assert head_shaped(computed_shapes(linear_cross_entropy, (0, 1)))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_an_explicit_chunk_size(chunk):
    def chunked(hidden, head, labels):
        return linear_cross_entropy(hidden, head, labels, chunk)

    inputs = make_inputs(173, 36, 101)
    assert max(error_ratios(with_gradients(chunked, *inputs), *references(*inputs))) <= 1
    rows = {shape[0] for shape in computed_shapes(chunked, (0, 1)) if len(shape) == 2 and shape[1] == VOCABULARY}
    assert max(rows) <= max(chunk, 1)
    assert not head_shaped(computed_shapes(chunked, 0))


def test_logits_of_all_tokens_never_exist(real_chunks):
    def too_large(shapes):
        return [shape for shape in shapes if VOCABULARY in shape and np.prod(shape) >= VOCABULARY * TOKENS]

    assert not too_large(computed_shapes(linear_cross_entropy, (0, 1)))
    assert not too_large(output_shapes(jax.make_jaxpr(token_cross_entropy)(*ABSTRACT)))
    assert too_large(computed_shapes(plain_loss, (0, 1)))


def test_at_most_128_mebibytes_of_logits(real_chunks):
    compiled = jax.jit(jax.grad(linear_cross_entropy)).lower(
        jax.ShapeDtypeStruct((65_536, 8), jnp.float32),
        jax.ShapeDtypeStruct((128_256, 8), jnp.float32),
        jax.ShapeDtypeStruct((65_536,), jnp.int32),
    )
    assert compiled.compile().memory_analysis().temp_size_in_bytes < 3 * 2**27
    assert [chunk_tokens(vocab_size) for vocab_size in (49_152, 128_256, 2**20, 2**30)] == [170, 256, 32, 1]
