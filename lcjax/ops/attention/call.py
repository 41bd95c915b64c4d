"""One checked call of attention.

Every implementation receives it, and decides from it whether it supports the call.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from lcjax.ops.attention import masks
from lcjax.ops.attention.masks import Mask


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """The arguments of `lcjax.ops.attention` with their defaults.

    `mask` combines everything that hides keys.
    """

    q_BTHD: jax.Array
    k_BSKD: jax.Array
    v_BSKD: jax.Array
    sinks_H: jax.Array | None
    scale: float
    mask: Mask
    score_mod: Callable[..., Any] | None
    # What `mask` and `score_mod` consist of, for implementations that support only some of it.
    causal: bool
    window: int | None
    query_offset: int | jax.Array
    extras: tuple[str, ...]

    @classmethod
    def checked(
        cls,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *,
        causal: bool,
        window: int | None,
        query_segments_BT: jax.Array | None,
        key_segments_BS: jax.Array | None,
        query_offset: int | jax.Array | None,
        mask_mod: Any,
        score_mod: Any,
        soft_cap: float | None,
        sinks_H: jax.Array | None,
        scale: float | None,
        return_lse: bool,
    ) -> AttentionCall:
        """Raises ValueError, in one line with the wrong value, if arguments do not fit together."""
        _check_shapes(q, k, v, query_segments_BT, key_segments_BS, sinks_H)
        _check_numbers(window, soft_cap, scale)
        tokens, keys = q.shape[1], k.shape[1]
        offset = keys - tokens if query_offset is None else query_offset
        parts = []
        if causal or window is not None:
            parts.append(_band(causal, window, offset, tokens, keys))
        if query_segments_BT is not None and key_segments_BS is not None:
            parts.append(masks.Documents(query_segments_BT, key_segments_BS))
        if mask_mod is not None:
            parts.append(masks.function(mask_mod))
            _check_mod("mask_mod", parts[-1], (), "a bool", jnp.bool_)
        extras = {
            "segment ids": query_segments_BT is not None,
            "mask_mod": mask_mod is not None,
            "score_mod": score_mod is not None,
            "soft_cap": soft_cap is not None,
            "sinks": sinks_H is not None,
            "return_lse": return_lse,
        }
        return cls(
            q,
            k,
            v,
            None if sinks_H is None else sinks_H.astype(jnp.float32),
            q.shape[-1] ** -0.5 if scale is None else float(scale),
            _constant(masks.AllOf(tuple(parts))),
            _constant(_joined_score_mod(soft_cap, score_mod)),
            causal,
            window,
            offset,
            tuple(name for name, given in extras.items() if given),
        )


def _check_shapes(q, k, v, query_segments, key_segments, sinks) -> None:
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 4 or k.shape != v.shape or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"attention: {shapes} do not fit; expected [B, T, H, D], [B, S, K, D], [B, S, K, D]")
    if 0 in (*q.shape, *k.shape):
        raise ValueError(f"attention: {shapes} are empty; give at least one query and one key")
    if max(q.shape[1], k.shape[1]) > 2**31 - 1:
        raise ValueError(f"attention: {shapes} have positions beyond int32; use at most 2^31 - 1 tokens")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: {q.shape[2]} query heads are not a multiple of {k.shape[2]} key/value heads")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention: dtypes {q.dtype}, {k.dtype}, {v.dtype} differ; cast q, k and v to one")
    if not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"attention: dtype {q.dtype} is not floating point; use float32, bfloat16 or float16")
    if (query_segments is None) != (key_segments is None):
        raise ValueError("attention: give segment ids for both queries and keys, or for neither")
    if query_segments is not None and (query_segments.shape, key_segments.shape) != (q.shape[:2], k.shape[:2]):
        raise ValueError(
            f"attention: segment ids {query_segments.shape} and {key_segments.shape} do not fit "
            f"{shapes}; expected [B, T] and [B, S]"
        )
    if sinks is not None and sinks.shape != q.shape[2:3]:
        raise ValueError(f"attention: sinks {sinks.shape} do not fit {q.shape[2]} query heads; expected [H]")


def _check_numbers(window, soft_cap, scale) -> None:
    if window is not None and window < 1:
        raise ValueError(f"attention: window={window} hides every key; give at least 1 token, or None for no window")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"attention: soft_cap={soft_cap} is not positive; give a positive number, or None for no cap")
    if scale is not None and not scale > 0:
        raise ValueError(f"attention: scale={scale} is not positive; negate q instead")


def _band(causal: bool, window: int | None, offset: int | jax.Array, tokens: int, keys: int) -> Mask:
    """The mask of `causal` and `window`.

    Offsets are clipped to the range beyond which all or none of the keys are visible, so that no
    index overflows.
    """
    before = None if window is None else min(window, tokens + keys)
    after = 0 if causal else None if before is None else before - 1
    reach = before or 0
    least, greatest = -tokens - reach, keys + reach
    if isinstance(offset, int):
        return masks.Band(before, after, min(max(offset, least), greatest))
    return masks.Band(before, after, offset=jnp.clip(offset, least, greatest).astype(jnp.int32).reshape(1))


def _joined_score_mod(soft_cap: float | None, score_mod: Any) -> Partial | None:
    if score_mod is not None:
        score_mod = score_mod if isinstance(score_mod, Partial) else Partial(score_mod)
        _check_mod("score_mod", score_mod, (jnp.float32(0),), "a float", jnp.floating)
    if soft_cap is None:
        return score_mod
    return Partial(_CappedScore(float(soft_cap)), score_mod)


@dataclasses.dataclass(frozen=True)
class _CappedScore:
    cap: float

    def __call__(self, then: Partial | None, score, b, h, q, k):
        score = self.cap * jnp.tanh(score * (1 / self.cap))
        return score if then is None else then(score, b, h, q, k)


def _check_mod(name: str, mod: Any, first: tuple, expected: str, kind: Any) -> None:
    """Traces the mod once, with scalars, and computes nothing."""
    index = jnp.int32(0)
    closed, result = jax.make_jaxpr(lambda mod, *args: mod(*args), return_shape=True)(mod, *first, *[index] * 4)
    if closed.consts:
        shape = jnp.shape(closed.consts[0])
        raise ValueError(
            f"attention: {name} captures an array of shape {shape}; bind it instead, "
            f"jax.tree_util.Partial({name}, array), with the array as its first argument"
        )
    if jnp.shape(result) != () or not jnp.issubdtype(result.dtype, kind):
        raise ValueError(
            f"attention: {name} returns {result.dtype}{list(result.shape)} for one pair; expected {expected}"
        )


@jax.custom_jvp
def _constant(tree: Any) -> Any:
    """Returns the same arrays, and raises if they are differentiated.

    A gradient of zero would be wrong without any sign of it.
    """
    return tree


@_constant.defjvp
def _constant_jvp(primals, tangents):
    del primals, tangents
    raise ValueError(
        "attention: cannot differentiate with respect to an array that mask_mod or score_mod "
        "reads, which is a constant; wrap it in jax.lax.stop_gradient"
    )
