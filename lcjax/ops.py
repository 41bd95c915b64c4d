"""The public operations, each with the implementation chosen by name.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads (H a multiple of K), D head_dim, F = D / 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcjax import reference
from lcjax.blockwise import Masking, blockwise_attention
from lcjax.errors import InputError
from lcjax.rope import rope_tables

IMPLEMENTATIONS = ("auto", "xla")


def rope(
    q_BTHD: jax.Array,
    k_BTKD: jax.Array,
    positions_BT: jax.Array,
    inverse_frequencies_F: jax.Array,
    *,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Rotates queries and keys by their positions: the pair (x[i], x[i + F]) by `position * inverse_frequencies[i]`.

    Angles, cosines, sines and the rotation are float32; the results have the dtypes of q and k.

    Args:
      q_BTHD, k_BTKD: float32 or bfloat16.
      positions_BT: integer positions in tokens, one a token, so that packed documents can restart at 0.
      inverse_frequencies_F: float32, radians a token (see `lcjax.rope.inverse_frequencies`).
      implementation: "xla" or "auto".

    Raises:
      ValueError: an unknown implementation, or shapes that do not fit together.

    Source: Su et al., RoFormer, arXiv 2104.09864, with the halves paired as in Hugging Face's Llama.
    """
    resolve_implementation(implementation)
    if q_BTHD.shape[-1] != 2 * inverse_frequencies_F.shape[0] or q_BTHD.shape[:2] != positions_BT.shape:
        raise ValueError(
            f"rope: q {q_BTHD.shape} does not fit positions {positions_BT.shape} and {inverse_frequencies_F.shape[0]} "
            "frequencies; expected [B, T, H, 2 F], [B, T] and [F]"
        )
    cos, sin = rope_tables(positions_BT, inverse_frequencies_F)
    rotate = lambda x: reference.rope(x.astype(jnp.float32), cos, sin).astype(x.dtype)  # noqa: E731
    return rotate(q_BTHD), rotate(k_BTKD)


def attention(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    *,
    causal: bool = True,
    query_segments_BT: jax.Array | None = None,
    key_segments_BS: jax.Array | None = None,
    query_offset: int | None = None,
    scale: float | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """`softmax(scale * q k^T + mask) v` with grouped query heads, differentiable in q, k and v.

    Memory is O(T + S) forward and backward: no [T, S] array exists. Scores, softmax and sums are float32. A query that sees
    no key gives zero.

    Args:
      q_BTHD, k_BSKD, v_BSKD: float32 or bfloat16, one dtype.
      causal: query t sees keys up to `t + query_offset`.
      query_segments_BT, key_segments_BS: int32 document ids; a query sees keys of its own id only. Both or neither; blocks
        without a common id cost nothing when ids ascend.
      query_offset: the key index of query 0; `S - T` when None, which aligns the last query with the last key.
      scale: `1 / sqrt(D)` when None.
      implementation: "xla" or "auto".

    Returns:
      [B, T, H, D] in q's dtype.

    Raises:
      ValueError: an unknown implementation, or shapes or dtypes that do not fit together.

    Source: Vaswani et al., arXiv 1706.03762; grouped queries: Ainslie et al., arXiv 2305.13245.
    """
    resolve_implementation(implementation)
    _check_attention(q_BTHD, k_BSKD, v_BSKD, query_segments_BT, key_segments_BS)
    batch, tokens, _, head_dim = q_BTHD.shape
    keys = k_BSKD.shape[1]
    if query_segments_BT is None or key_segments_BS is None:
        query_segments_BT = jnp.zeros((batch, tokens), jnp.int32)
        key_segments_BS = jnp.zeros((batch, keys), jnp.int32)
    offset = keys - tokens if query_offset is None else query_offset
    masking = Masking(
        causal=causal,
        # Beyond these bounds all or none of the keys are visible; within them `t + query_offset` fits an int32.
        query_offset=min(max(offset, -tokens), keys),
        scale=head_dim**-0.5 if scale is None else scale,
    )
    return blockwise_attention(masking, q_BTHD, k_BSKD, v_BSKD, query_segments_BT, key_segments_BS)


def resolve_implementation(implementation: str) -> str:
    """What computes when `implementation` is asked for: "auto" is "xla".

    Raises:
      InputError: a name that is not in IMPLEMENTATIONS.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"attention={implementation!r} is unknown; use one of {', '.join(IMPLEMENTATIONS)}")
    return "xla"


def _check_attention(q, k, v, query_segments, key_segments) -> None:
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"attention: {shapes} do not fit; expected [B, T, H, D], [B, S, K, D], [B, S, K, D]")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads are not a multiple of {k.shape[2]} key/value heads")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention: dtypes {q.dtype}, {k.dtype}, {v.dtype} differ; cast q, k and v to one")
    if (query_segments is None) != (key_segments is None):
        raise ValueError("attention: give segment ids for both queries and keys, or for neither")
    if query_segments is not None and (query_segments.shape, key_segments.shape) != (q.shape[:2], k.shape[:2]):
        raise ValueError(
            f"attention: segment ids {query_segments.shape} and {key_segments.shape} do not fit {shapes}; "
            "expected [B, T] and [B, S]"
        )
