"""Compares frequencies and attention factors of every kind with transformers and float64.

The lengths are on both sides of the context.
"""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from lcjax.config import LlamaConfig, RopeScaling
from lcjax.config.rope import attention_factor
from lcjax.errors import InputError
from lcjax.ops.rope import inverse_frequencies
from tests.support.numerics import error_ratio
from tests.support.rope_kinds import (
    CONTEXT,
    KINDS,
    LENGTHS,
    exact_attention_factor,
    exact_frequencies,
    hugging_face,
    ours,
    transformers_frequencies,
)

# Kinds with only IEEE operations, except the power, which our implementation rounds correctly.
BITWISE = ("linear", "llama3")


def worst_ratio(config: LlamaConfig, name: str, lengths=LENGTHS) -> float:
    """Returns the largest ratio of the tolerance rule over all lengths, with equal weights."""
    ratios = []
    for tokens in lengths:
        plain, _ = transformers_frequencies(hugging_face(name), tokens)
        exact = exact_frequencies(ours(name), tokens)
        actual = np.asarray(jax.jit(inverse_frequencies, static_argnums=0)(config, jnp.int32(tokens)))
        assert actual.dtype == plain.dtype == np.float32
        ratios.append(error_ratio(actual / exact, plain / exact, exact / exact, dtype=np.float32))
    return max(ratios)


@pytest.mark.parametrize("name", KINDS)
def test_frequencies_equal_transformers(name):
    assert worst_ratio(ours(name), name) <= 1


@pytest.mark.parametrize("name", BITWISE)
def test_frequencies_equal_transformers_bitwise(name):
    plain, _ = transformers_frequencies(hugging_face(name), 1)
    np.testing.assert_array_equal(inverse_frequencies(ours(name)), plain)


@pytest.mark.parametrize("name", KINDS)
def test_attention_factors_equal_transformers(name):
    _, plain = transformers_frequencies(hugging_face(name), 1)
    assert np.float32(attention_factor(ours(name))) == np.float32(plain)
    assert attention_factor(ours(name)) == pytest.approx(exact_attention_factor(ours(name)), rel=1e-15)


MUTANTS = {
    "yarn": [
        {"beta_fast": 16.0},
        {"beta_slow": 2.0},
        {"factor": 32.01},
        {"truncate": False},
        {"original_max_position_embeddings": 4097, "truncate": False},
    ],
    "yarn, not truncated": [{"beta_fast": 20.01}, {"beta_slow": 1.501}, {"original_max_position_embeddings": 4097}],
    "linear": [{"factor": 3.001}],
    "dynamic": [{"factor": 2.001}],
    "longrope": [{"short_factor": (1.0,) * 32}, {"original_max_position_embeddings": 4095}],
    "llama3": [{"factor": 8.001}, {"low_freq_factor": 1.001}, {"high_freq_factor": 4.01}],
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_fail(name):
    config = ours(name)
    for change in MUTANTS[name]:
        mutant = dataclasses.replace(config, rope_scaling=dataclasses.replace(config.rope_scaling, **change))
        assert worst_ratio(mutant, name) > 1, change


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_ignoring_the_length_fails(name):
    plain, _ = transformers_frequencies(hugging_face(name), 131_072)
    exact = exact_frequencies(ours(name), 131_072)
    actual = np.asarray(inverse_frequencies(ours(name)))
    assert error_ratio(actual / exact, plain / exact, exact / exact, dtype=np.float32) > 1


SPELLINGS = {
    "old": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}},
    "old, with rope_type": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "new": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}},
    "new, base outside": {"rope_theta": 5e5, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    "both, and the old one counts": {
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 7.0, "rope_theta": 1e4},
    },
    "original context outside": {
        "original_max_position_embeddings": 1024,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    },
    "yarn without a factor": {
        "rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 512},
    },
    "no base at all": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "unscaled": {"rope_theta": 12_345.0, "rope_scaling": None},
    "integers, and remarks": {"rope_scaling": {"type": "yarn", "factor": 8, "finetuned": True}},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_have_the_same_meaning_as_in_transformers(name, caplog):
    common = hugging_face("default").to_dict()
    del common["rope_parameters"]
    written = common | {"max_position_embeddings": CONTEXT, **SPELLINGS[name]}
    theirs = transformers.LlamaConfig.from_dict(dict(written))
    config = LlamaConfig.from_dict(written)
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    for tokens in (1, CONTEXT + 1, 16 * CONTEXT):
        plain, factor = transformers_frequencies(theirs, tokens)
        exact = exact_frequencies(config, tokens)
        actual = np.asarray(inverse_frequencies(config, tokens))
        assert error_ratio(actual / exact, plain / exact, exact / exact, dtype=np.float32) <= 1
        assert attention_factor(config) == factor


@pytest.mark.parametrize("name", KINDS)
def test_a_config_survives_a_round_trip_through_json(name):
    config = ours(name)
    assert LlamaConfig.from_dict(config.to_dict()) == config
    theirs = transformers.LlamaConfig.from_dict(config.to_dict())
    for tokens in (1, 100_000):
        for mine, back in zip(
            transformers_frequencies(hugging_face(name), tokens), transformers_frequencies(theirs, tokens), strict=True
        ):
            np.testing.assert_array_equal(mine, back)


def test_the_first_spelling_of_longrope():
    common = hugging_face("longrope").to_dict()
    rope = common.pop("rope_parameters")
    rope["type"] = "su"
    del rope["rope_type"]
    assert LlamaConfig.from_dict(common | {"rope_scaling": rope}).rope_scaling == ours("longrope").rope_scaling


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_type": "ntk", "factor": 2.0}, "rope_type='ntk', which is not supported; use one of default, linear"),
        ({"rope_type": "linear"}, "says rope_type='linear' without a factor"),
        ({"rope_type": "linear", "factor": "four"}, "says factor='four'; it must be a number"),
        ({"rope_type": "linear", "factor": 0.5}, "factor=0.5 must be at least 1.0"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}, "beta_slow=1.0 must lie between 0 and beta_fast=0.5"),
        ({"rope_type": "yarn", "factor": 2.0, "mrope_section": [1]}, "has mrope_section among RoPE's parameters"),
        (
            {"rope_type": "longrope", "short_factor": [1.0], "long_factor": 2},
            "says long_factor=2; it must be a list of numbers",
        ),
        ({"rope_type": "longrope", "factor": 2.0}, "longrope needs a list of positive numbers as short_factor"),
        (
            {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [1.0]},
            "short_factor in the model's config has 1 numbers for 32 rotated pairs",
        ),
        ({"rope_theta": 1}, "says rope_theta=1.0; it must be a number above 1"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor=1.5 in the model's config must be above 0"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as error:
        LlamaConfig.from_dict(hugging_face("default").to_dict() | {"rope_parameters": change})
    assert "\n" not in str(error.value)
    assert re.search("correct it|use one of|download the model again", str(error.value))


def test_unused_parameters_are_not_written():
    assert RopeScaling("linear", 2.0).to_dict() == {"rope_type": "linear", "factor": 2.0}
    assert RopeScaling().to_dict() is None
