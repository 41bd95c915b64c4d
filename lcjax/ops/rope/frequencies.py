"""The frequencies of every kind of RoPE, as a model's config specifies them.

All arithmetic is float32, as in the training code of the models. At position 32,768 a difference in
the last bit of a frequency is already a thousandth of a radian.

Shapes: F rotated pairs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcjax.config import LlamaConfig
from lcjax.config.families import Rotary
from lcjax.config.rope import UNSCALED, attention_factor

Frequencies = Any
"""float32 [F]: a numpy array, or a jax Array if it depends on the length of the sequence."""


def inverse_frequencies(config: LlamaConfig, tokens: int | jax.Array = 1) -> Frequencies:
    """The rotation of pair i in radians per token: `theta^(-2i / rotated dimensions)`, then scaled.

    Args:
      config: the base, the rotated part of a head and the scaling.
      tokens: the length of the sequence, an int or a traced int32 scalar. It is the highest
        position in the batch plus one, as in transformers. Only `dynamic` and `longrope` depend on
        it, above the context that the model was first trained for.

    Returns:
      float32 [F], where F is half the rotated dimensions; a numpy array, or a jax Array for these
      two kinds.

    Source: Su et al., RoFormer, arXiv 2104.09864. The function of each kind has its source.
    """
    return KINDS[config.rope_scaling.rope_type](config, tokens)


def layer_rotation(config: LlamaConfig, rotary: Rotary, tokens: int | jax.Array = 1) -> tuple[Frequencies, float]:
    """(the frequencies, the attention factor) of the layers that are rotated as `rotary` says.

    Frequencies are zero for layers without rotary positions: a rotation by zero changes no bit.
    `tokens` is as in `inverse_frequencies`.
    """
    if not rotary.rotates:
        return np.zeros_like(_wavenumbers(config)), 1.0
    if rotary.theta is not None:
        config = dataclasses.replace(config, rope_theta=rotary.theta, rope_scaling=UNSCALED)
    return inverse_frequencies(config, tokens), attention_factor(config)


def _default(config: LlamaConfig, tokens: int | jax.Array) -> Frequencies:
    return np.float32(1.0) / _wavenumbers(config)


def _linear(config: LlamaConfig, tokens: int | jax.Array) -> Frequencies:
    """Divides all positions by `factor`. Source: Chen et al., arXiv 2306.15595."""
    return _default(config, tokens) / np.float32(config.rope_scaling.factor)


def _dynamic(config: LlamaConfig, tokens: int | jax.Array) -> Frequencies:
    """Increases the base with the length of the sequence, above the config's context.

    Source: the posts of bloc97 and emozilla on r/LocalLLaMA (2023); YaRN, arXiv 2309.00071,
    section 3.3, "Dynamic NTK".
    """
    context, factor = config.max_position_embeddings, config.rope_scaling.factor
    beyond = jnp.maximum(jnp.asarray(tokens) - context, 0).astype(jnp.float32) / context
    # The base is multiplied by growth^(d / (d - 2)), so frequency i by growth^(-2i / (d - 2)). With
    # growth = mantissa 2^power, most of that exponent is a quotient of integers, which is exact. A
    # float32 power with an exponent of several thousand is wrong by several units in the last
    # place.
    mantissa, power = jnp.frexp(1.0 + factor * beyond)
    twice_i, denominator = np.arange(0, config.rotary_dim, 2, dtype=np.int32), max(1, config.rotary_dim - 2)
    halvings, rest = jnp.divmod(power * twice_i, denominator)
    shrink = jnp.exp2(-(rest + twice_i * jnp.log2(mantissa)) / denominator)
    return _default(config, tokens) * jnp.ldexp(shrink, -halvings)


def _yarn(config: LlamaConfig, tokens: int | jax.Array) -> Frequencies:
    """Stretches slow waves and leaves fast waves unchanged.

    Waves with more than `beta_fast` turns in the original context are unchanged. Waves with fewer
    than `beta_slow` turns are stretched by `factor`. Waves between are a mixture of the two, linear
    in the index of the pair.

    Source: Peng et al., YaRN, arXiv 2309.00071, section 3.2.
    """
    scaling, dimensions = config.rope_scaling, config.rotary_dim

    def pair_that_turns(times: float) -> float:
        waves = scaling.original_max_position_embeddings / (times * 2.0 * math.pi)
        return dimensions * math.log(waves) / (2.0 * math.log(config.rope_theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dimensions - 1)
    if first == last:
        last += 0.001
    unscaled, wavenumbers = _default(config, tokens), _wavenumbers(config)
    stretched = np.float32(1.0) / (np.float32(scaling.factor) * wavenumbers)
    pairs = np.arange(len(unscaled), dtype=np.float32)
    keep = 1.0 - np.clip((pairs - np.float32(first)) / np.float32(last - first), 0.0, 1.0)
    return stretched * (1.0 - keep) + unscaled * keep


def _longrope(config: LlamaConfig, tokens: int | jax.Array) -> Frequencies:
    """Divides every frequency by its own factor.

    Sequences longer than the original context use a second set of factors.

    Source: Ding et al., LongRoPE, arXiv 2402.13753.
    """
    scaling, wavenumbers = config.rope_scaling, _wavenumbers(config)
    short, long = (
        np.float32(1.0) / (np.asarray(factors, np.float32) * wavenumbers)
        for factors in (scaling.short_factor, scaling.long_factor)
    )
    return jnp.where(jnp.asarray(tokens) > scaling.original_max_position_embeddings, long, short)


def _llama3(config: LlamaConfig, tokens: int | jax.Array) -> Frequencies:
    """Llama 3.1: slow waves are stretched by `factor`, fast ones unchanged, linear blends between.

    Source: Llama 3.1 model card and reference code (`apply_scaling`).
    """
    scaling, frequencies = config.rope_scaling, _default(config, tokens)
    wavelengths = np.float32(2 * math.pi) / frequencies
    context = np.float32(scaling.original_max_position_embeddings)
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    factor = np.float32(scaling.factor)
    keep = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0).astype(np.float32)
    blended = (np.float32(1.0) - keep) * frequencies / factor + keep * frequencies
    return np.where(
        wavelengths > context / low,
        frequencies / factor,
        np.where(wavelengths < context / high, frequencies, blended),
    ).astype(np.float32)


KINDS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}


def _wavenumbers(config: LlamaConfig) -> np.ndarray:
    """theta^(2i / rotated dimensions), the tokens per radian of a wave; float32 [F]."""
    exponents = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / np.float32(config.rotary_dim)
    # The power is rounded once, from float64. numpy's float32 power is wrong by one unit in the
    # last place for some exponents.
    return np.power(np.float64(config.rope_theta), exponents.astype(np.float64)).astype(np.float32)
