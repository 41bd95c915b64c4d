"""Invalid token ids and logits that are not finite are refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lcjax
from lcjax.errors import InputError
from lcjax.generate import Generator, Sampling
from lcjax.model import ModelSettings
from tests.support.tiny_llama import random_params

CONFIG = lcjax.LlamaConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
TWO = 2


def model_of(params) -> lcjax.Llama:
    return lcjax.Llama(CONFIG, params, ModelSettings(max_seq_length=32))


@pytest.fixture(scope="module")
def model():
    return model_of(random_params(CONFIG))


@pytest.mark.parametrize("wrong", [50, 51, 2**31 - 1, 2**40, -1])
def test_ids_outside_the_vocabulary_are_named(model, wrong):
    named = rf"the token id {wrong} is outside the model's vocabulary of 50"
    with pytest.raises(InputError, match=named):
        next(Generator(model, 8).generate([1, wrong, 2], Sampling(), max_new_tokens=TWO))
    if -(2**31) <= wrong < 2**31:
        for ids in (np.array([[1, wrong]]), jnp.array([[1, wrong]], jnp.int32)):
            with pytest.raises(InputError, match=named):
                model(ids)


def test_ids_that_are_not_integers_are_refused(model):
    with pytest.raises(InputError, match="token ids are float32"):
        model(jnp.ones((1, 3)))


@pytest.mark.parametrize("ids", [[1, 2, 3], 1, [[]], [[[1]]]])
def test_ids_that_are_not_rows_are_refused(model, ids):
    with pytest.raises(InputError, match="give rows of tokens"):
        model(np.array(ids, np.int32))


def test_first_and_last_id_are_tokens(model):
    assert jnp.isfinite(model(jnp.array([[0, 49]]))).all()
    assert len(list(Generator(model, 8).generate([0, 49], Sampling(), max_new_tokens=TWO))) == 2


def test_a_traced_call_is_not_checked(model):
    """Its ids are unknown. It must compile, because training needs this."""
    assert jax.jit(lambda ids: model(ids))(jnp.array([[1, 2]])).shape == (1, 2, 50)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0.9)])
def test_logits_that_are_not_finite_give_one_line(value, sampling):
    params = random_params(CONFIG)
    params["norm"]["weight"] = params["norm"]["weight"].at[3].set(value)
    with pytest.raises(InputError, match="logits after 3 tokens are NaN or infinite") as caught:
        next(Generator(model_of(params), 8).generate([1, 2, 3], sampling, max_new_tokens=TWO))
    assert "\n" not in str(caught.value)
