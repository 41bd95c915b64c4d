"""Compares RoPE with transformers and float64. The angles are exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig as HFLlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from lcjax import ops
from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from lcjax.ops.rope import inverse_frequencies, rope_tables
from tests.support.exact_angles import exact_angles
from tests.support.numerics import error_ratio, error_ratios

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = {
    "llama 2": {"head_dim": 128, "theta": 10_000.0},
    "llama 3": {"head_dim": 128, "theta": 500_000.0},
    "smollm2": {"head_dim": 64, "theta": 100_000.0},
    "odd head_dim": {"head_dim": 20, "theta": 10_000.0},
    "fractional theta": {"head_dim": 80, "theta": 1234.5},
    "llama 3.1": {"head_dim": 128, "theta": 500_000.0, **LLAMA3, "original_max_position_embeddings": 8192},
    "llama 3.2": {
        "head_dim": 64,
        "theta": 500_000.0,
        **LLAMA3,
        "factor": 32.0,
        "original_max_position_embeddings": 8192,
    },
    "llama3, all waves scaled": {"head_dim": 20, "theta": 1e6, **LLAMA3, "original_max_position_embeddings": 4},
    "llama3, unlike bounds": {
        "head_dim": 96,
        "theta": 10_000.0,
        "rope_type": "llama3",
        "factor": 3.0,
        "low_freq_factor": 1.5,
        "high_freq_factor": 2.5,
        "original_max_position_embeddings": 1000,
    },
}
ODD_ROPES = ("fractional theta", "llama3, unlike bounds")
POSITIONS = {
    "from zero": np.arange(40),
    "to 32K": np.arange(32_768 - 40, 32_768),
    "to 1M": np.arange(2**20 - 40, 2**20),
    "packed": np.r_[np.arange(25), np.arange(15)],
    "scattered": np.array([7, 3, 32_767, 0, 1_000_000, 999_999, 500, 16_777_215]),
}


def both_configs(head_dim, theta, **scaling) -> tuple[LlamaConfig, HFLlamaConfig]:
    sizes = {
        "vocab_size": 8,
        "hidden_size": 4 * head_dim,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": 131_072,
    }
    hugging_face = HFLlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": theta, **scaling})
    return LlamaConfig.from_dict(hugging_face.to_dict()), hugging_face


def make_inputs(head_dim: int, positions, dtype=np.float32, batch: int = 2):
    rng = np.random.default_rng(0)
    positions = np.stack([np.roll(positions, row) for row in range(batch)]).astype(np.int32)
    draw = lambda heads: jnp.asarray(rng.normal(size=(*positions.shape, heads, head_dim)), dtype)  # noqa: E731
    return jnp.asarray(positions), draw(4), draw(2), draw(4), draw(2)


@pytest.mark.parametrize("name", [name for name in ROPES if name not in ODD_ROPES])
def test_frequencies_equal_transformers_bitwise(name):
    config, hugging_face = both_configs(**ROPES[name])
    np.testing.assert_array_equal(inverse_frequencies(config), LlamaRotaryEmbedding(hugging_face).inv_freq.numpy())


@pytest.mark.parametrize("name", ROPES)
def test_frequencies(name):
    """Both are compared with float64, because torch's float32 power is not correctly rounded."""
    config, hugging_face = both_configs(**ROPES[name])
    plain = LlamaRotaryEmbedding(hugging_face).inv_freq.numpy()
    assert relative_error_ratio(inverse_frequencies(config), plain, exact_frequencies(**ROPES[name])) <= 1


def relative_error_ratio(actual, plain, exact):
    """Returns the error ratio with equal weights for all frequencies, which span six decades."""
    return error_ratio(actual / exact, plain / exact, exact / exact, dtype=np.float32)


def exact_frequencies(head_dim, theta, factor=None, low_freq_factor=1, high_freq_factor=4, **llama3):
    """Returns float64 frequencies; llama3 by the number of turns in the original context."""
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if factor is None:
        return frequencies
    waves = llama3["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    keep = np.clip((waves - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return frequencies * (keep + (1 - keep) / factor)


def test_mutants_of_frequencies_fail():
    _, hugging_face = both_configs(**ROPES["llama 3.1"])
    plain, exact = LlamaRotaryEmbedding(hugging_face).inv_freq.numpy(), exact_frequencies(**ROPES["llama 3.1"])
    for change in ({"theta": 500_001.0}, {"factor": 8.001}, {"high_freq_factor": 4.01}, {"low_freq_factor": 1.001}):
        mutant, _ = both_configs(**(ROPES["llama 3.1"] | change))
        assert relative_error_ratio(inverse_frequencies(mutant), plain, exact) > 1, change


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", ["llama 2", "llama 3.1", "odd head_dim"])
def test_equals_transformers(name, positions):
    config, hugging_face = both_configs(**ROPES[name])
    positions, q, k, *_ = make_inputs(config.head_dim, POSITIONS[positions])
    actual = ops.rope(q, k, positions, jnp.asarray(inverse_frequencies(config)))
    plain = by_transformers(hugging_face, q, k, positions, torch.float32)
    exact = by_transformers(hugging_face, q, k, positions, torch.float64)
    assert max(error_ratios(actual, plain, exact)) <= 1


def by_transformers(config, q, k, positions, dtype):
    """Returns transformers' rotation in `dtype`, in float64 with exact angles."""
    rotary = LlamaRotaryEmbedding(config)
    angles = torch.from_numpy(exact_angles(np.asarray(positions), rotary.inv_freq.numpy()))
    cos, sin = (f(torch.cat([angles, angles], dim=-1)) for f in (torch.cos, torch.sin))
    if dtype == torch.float32:
        cos, sin = rotary(torch.zeros(1), torch.from_numpy(np.array(positions)))
    heads_first = (torch.from_numpy(np.array(x)).to(dtype).transpose(1, 2) for x in (q, k))
    return tuple(x.transpose(1, 2).numpy() for x in apply_rotary_pos_emb(*heads_first, cos, sin))


def rotate(x, angles, sign=1):
    """Rotates in numpy, in the dtype of x: pair (i, i + F) is multiplied by exp(i angle)."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = (f(angles)[:, :, None].astype(x.dtype) for f in (np.cos, np.sin))
    return np.concatenate([first * cos - sign * second * sin, second * cos + sign * first * sin], axis=-1)


def with_gradients(q, k, dq, dk, positions, frequencies):
    out, pull_back = jax.vjp(lambda q, k: ops.rope(q, k, positions, frequencies), q, k)
    return (*out, *pull_back((dq, dk)))


def references(dtype, positions, frequencies, *tensors):
    """Returns (q, k, dq, dk) from numpy. The transpose of a rotation is its inverse."""
    angles = exact_angles(np.asarray(positions), np.asarray(frequencies))
    return tuple(
        rotate(np.asarray(x).astype(dtype), angles, sign) for x, sign in zip(tensors, (1, 1, -1, -1), strict=True)
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("positions", POSITIONS)
def test_value_and_gradients(positions, dtype):
    config, _ = both_configs(**ROPES["llama 3.1"])
    frequencies = jnp.asarray(inverse_frequencies(config))
    positions, *tensors = make_inputs(config.head_dim, POSITIONS[positions], dtype)
    actual = with_gradients(*tensors, positions, frequencies)
    plain = references(dtype, positions, frequencies, *tensors)
    assert max(error_ratios(actual, plain, references(np.float64, positions, frequencies, *tensors))) <= 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_mutants_fail(dtype):
    config, _ = both_configs(**ROPES["llama 3.1"])
    frequencies = jnp.asarray(inverse_frequencies(config))
    positions, q, k, *_ = make_inputs(config.head_dim, POSITIONS["to 32K"], dtype)
    plain, exact = (references(d, positions, frequencies, q, k, q, k)[0] for d in (dtype, np.float64))

    def with_tables(q, change):
        cos, sin = change(*rope_tables(positions, frequencies))
        first, second = jnp.split(q.astype(jnp.float32), 2, axis=-1)
        cos, sin = cos[:, :, None], sin[:, :, None]
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(dtype)

    def phase(by):
        return lambda cos, sin: (cos * jnp.cos(by) - sin * jnp.sin(by), sin * jnp.cos(by) + cos * jnp.sin(by))

    swap = jnp.roll(q, config.head_dim // 2, axis=-1)
    interleaved = q.reshape(*q.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(q.shape)
    mutants = {
        "phase + 0.01": with_tables(q, phase(0.01)),
        "sign": with_tables(q, lambda cos, sin: (cos, -sin)),
        "cos for sin": with_tables(q, lambda cos, sin: (sin, cos)),
        "swapped halves": ops.rope(swap, k, positions, frequencies)[0],
        "pairs interleaved": ops.rope(interleaved, k, positions, frequencies)[0],
        "one position late": ops.rope(q, k, positions + 1, frequencies)[0],
        "batch rows swapped": ops.rope(q, k, positions[::-1], frequencies)[0],
    }
    assert error_ratio(with_tables(q, lambda cos, sin: (cos, sin)), plain, exact) <= 1
    for name, mutant in mutants.items():
        assert error_ratio(mutant, plain, exact) > 1, name


def test_bfloat16_frequencies_would_fail():
    """With frequencies rounded to bfloat16, the angles at 32K are wrong by many turns."""
    config, _ = both_configs(**ROPES["llama 3.1"])
    frequencies = jnp.asarray(inverse_frequencies(config))
    positions, *tensors = make_inputs(config.head_dim, POSITIONS["to 32K"], jnp.bfloat16)
    actual = with_gradients(*tensors, positions, frequencies.astype(jnp.bfloat16).astype(jnp.float32))
    references_of = [references(dtype, positions, frequencies, *tensors) for dtype in (jnp.bfloat16, np.float64)]
    assert min(error_ratios(actual, *references_of)) > 1


def test_the_attention_factor_scales_the_rotated_part_and_its_gradients():
    """It scales queries and keys, except the part that is not rotated."""
    config, _ = both_configs(**ROPES["odd head_dim"])
    frequencies = jnp.asarray(inverse_frequencies(config))[:6]
    positions, q, k, dq, dk = make_inputs(20, POSITIONS["scattered"])
    plain, scaled = (
        jax.vjp(lambda q, k, factor=factor: ops.rope(q, k, positions, frequencies, attention_factor=factor), q, k)
        for factor in (1.0, 1.25)
    )
    factors = np.where(np.arange(20) < 12, 1.25, 1.0).astype(np.float32)
    for one, other in zip((*plain[0], *plain[1]((dq, dk))), (*scaled[0], *scaled[1]((dq, dk))), strict=True):
        np.testing.assert_allclose(np.asarray(one) * factors, other, rtol=4 * np.finfo(np.float32).eps, atol=1e-6)


def test_bad_arguments_are_refused():
    config, _ = both_configs(**ROPES["odd head_dim"])
    frequencies = jnp.asarray(inverse_frequencies(config))
    positions, q, k, *_ = make_inputs(20, np.arange(5))
    with pytest.raises(ValueError, match="10 frequencies"):
        ops.rope(q[..., :18], k, positions, frequencies)
    with pytest.raises(ValueError, match="do not fit positions"):
        ops.rope(q, k, positions[:, :4], frequencies)
    with pytest.raises(InputError, match="'triton' is unknown"):
        ops.rope(q, k, positions, frequencies, implementation="triton")
