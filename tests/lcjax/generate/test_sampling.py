"""Compares sampling with transformers' top-p, and checks the frequencies of samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import TopPLogitsWarper

from lcjax.errors import InputError
from lcjax.generate import Sampling
from lcjax.generate.next_token import next_token, truncated_logits

LOGITS = np.random.default_rng(0).normal(0, 3, (4, 131)).astype(np.float32)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_top_p_selects_the_same_tokens_as_transformers(temperature, top_p):
    actual = truncated_logits(Sampling(temperature, top_p), jnp.asarray(LOGITS))
    expected = TopPLogitsWarper(top_p)(None, torch.from_numpy(LOGITS / np.float32(temperature))).numpy()
    np.testing.assert_array_equal(np.isneginf(actual), np.isneginf(expected))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert (np.isneginf(actual).sum(axis=1) < 131).all()


def test_greedy_selects_the_most_likely_token_for_any_key():
    chosen = next_token(Sampling(), jnp.asarray(LOGITS), jax.random.key(5))
    np.testing.assert_array_equal(chosen, LOGITS.argmax(axis=1))
    assert chosen.dtype == jnp.int32


def test_tokens_are_drawn_by_their_probabilities():
    """With 10,000 samples, frequencies are within five standard deviations of the probabilities.

    At twice the temperature, they are not.
    """
    logits = jnp.asarray([[2.0, 1.0, 0.0, -1.0, -30.0]])
    keys = jax.random.split(jax.random.key(0), 10_000)

    def deviations(temperature):
        drawn = jax.vmap(lambda key: next_token(Sampling(temperature), logits, key)[0])(keys)
        expected = np.asarray(jax.nn.softmax(logits[0] / 0.7))
        share = np.bincount(drawn, minlength=5) / len(keys)
        return np.abs(share - expected) / np.sqrt(expected * (1 - expected) / len(keys) + 1e-12)

    assert deviations(0.7).max() < 5
    assert deviations(1.4).max() > 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1.0}, "--temperature -1.0 is out of range"),
        ({"temperature": float("nan")}, "--temperature nan is out of range"),
        ({"top_p": 0.0}, "--top-p 0.0 is out of range"),
        ({"top_p": 1.5}, "--top-p 1.5 is out of range"),
    ],
)
def test_values_out_of_range(fields, message):
    with pytest.raises(InputError, match=message):
        Sampling(**fields)
