"""Rotary position embedding, computed by an implementation that the caller selects by name.

Shapes: B batch, T tokens, H query heads, K key/value heads, D head_dim, F rotated pairs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcjax.errors import InputError
from lcjax.ops.rope import reference
from lcjax.ops.rope.tables import rope_tables
from lcjax.ops.rope.turns import turns_per_token

ROPE_IMPLEMENTATIONS = ("auto", "pallas", "xla")


def resolve_rope(implementation: str, platform: str | None = None) -> str:
    """ "pallas" or "xla", on a platform of JAX; None is the default one.

    Raises:
      InputError: another name.
    """
    if implementation not in ROPE_IMPLEMENTATIONS:
        raise InputError(f"rope={implementation!r} is unknown; use one of {', '.join(ROPE_IMPLEMENTATIONS)}")
    if implementation == "auto":
        return "pallas" if (platform or jax.default_backend()) == "gpu" else "xla"
    return implementation


def rope_for(attention: str, platform: str | None = None) -> str:
    """The implementation of rope for a requested one of attention.

    It is that of the same name if there is one, and otherwise the platform's own.
    """
    return resolve_rope(attention if attention in ROPE_IMPLEMENTATIONS else "auto", platform)


def rope(
    q_BTHD: jax.Array,
    k_BTKD: jax.Array,
    positions_BT: jax.Array,
    inverse_frequencies_F: jax.Array,
    *,
    attention_factor: float | jax.Array = 1.0,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Rotates the pairs (x[i], x[i + F]) of q and k by `position * inverse_frequencies[i]`.

    Angles are exact at every position (see `lcjax.ops.rope.turns`). Cosines, sines and the rotation
    are float32. The results have the dtypes of q and k. Dimensions beyond 2 F are unchanged
    (partial rotary embedding). The results are differentiable in q and k.

    Args:
      q_BTHD, k_BTKD: float32, bfloat16 or float16.
      positions_BT: integer positions in tokens that int32 represents. Each token has its own, so
        that packed documents can restart at 0.
      inverse_frequencies_F: float32, radians per token (see `lcjax.ops.rope.inverse_frequencies`);
        2 F <= D.
      attention_factor: a number by which rotated pairs are multiplied (see
        `lcjax.config.rope.attention_factor`): a constant of the program, or a float32 scalar.
      implementation: "xla", "pallas" (one launch, in place) or "auto".

    Raises:
      InputError: the implementation is unknown.
      ValueError: shapes do not fit together.

    Source: Su et al., RoFormer, arXiv 2104.09864, with the two halves of a head paired as in
    Hugging Face's Llama.
    """
    rotated = 2 * inverse_frequencies_F.shape[0]
    fit = q_BTHD.shape[:2] == k_BTKD.shape[:2] == positions_BT.shape and q_BTHD.shape[-1] == k_BTKD.shape[-1] >= rotated
    if not fit or inverse_frequencies_F.ndim != 1:
        raise ValueError(
            f"rope: q {q_BTHD.shape} and k {k_BTKD.shape} do not fit positions "
            f"{positions_BT.shape} and {rotated // 2} frequencies; expected [B, T, H, D], [B, T, "
            "K, D], [B, T] and at most D / 2"
        )
    if resolve_rope(implementation) == "pallas":
        from lcjax.pallas.triton.rope import rotate  # import Pallas' Triton backend only if it runs

        positions_BT, turns_2F = positions_BT.astype(jnp.int32), turns_per_token(inverse_frequencies_F)
        constant, factor_1 = _parts_of(attention_factor)
        return rotate(q_BTHD, k_BTKD, positions_BT, turns_2F, factor_1, constant)
    cos, sin = rope_tables(positions_BT, inverse_frequencies_F, attention_factor)
    return _rotated(q_BTHD, cos, sin), _rotated(k_BTKD, cos, sin)


def _parts_of(factor: float | jax.Array) -> tuple[float, jax.Array | None]:
    """(a constant, an array [1] or None), whose product is the factor."""
    return (1.0, factor.astype(jnp.float32)[None]) if isinstance(factor, jax.Array) else (float(factor), None)


def _rotated(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    pairs = 2 * cos.shape[-1]
    rotated = reference.rope(x[..., :pairs].astype(jnp.float32), cos, sin).astype(x.dtype)
    return rotated if pairs == x.shape[-1] else jnp.concatenate([rotated, x[..., pairs:]], axis=-1)
