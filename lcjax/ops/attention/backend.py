"""The interface of an attention implementation: one object that states what it supports and needs.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lcjax.ops.attention.call import AttentionCall

Result = tuple[jax.Array, jax.Array | None]
"""(out [B, T, H, D], log-sum-exp float32 [B, H, T]); the second is None unless it is requested."""

Gradients = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]
"""(dq, dk, dv) in the dtypes of q, k and v, and dsinks, float32 [H]; None without sinks."""


@dataclasses.dataclass(frozen=True)
class LseForm:
    """How a backend stores log-sum-exps, to join results for parts of the keys.

    A log-sum-exp is the logarithm of `exp(maximum) total`, where both are float32 [B, H, T]. A
    query that sees no key has the maximum -inf and the total 0.

    Attributes:
      read: (maximum, total) from a call and what `forward` returned.
      write: what `backward` expects, from a call, maximum and total.
      exp: the exponential function of a difference of two maxima; its base is the backend's.
      log_e: the logarithm of e in that base. A score times this is a maximum.
    """

    read: Callable[[AttentionCall, Any], tuple[jax.Array, jax.Array]]
    write: Callable[[AttentionCall, jax.Array, jax.Array], Any]
    exp: Callable[[jax.Array], jax.Array] = jnp.exp
    log_e: float = 1.0


def _nothing(call: AttentionCall) -> str | None:
    return None


def _no_scratch(heads: int, kv_heads: int, head_dim: int, tokens: int) -> int:
    return 0


@dataclasses.dataclass(frozen=True)
class Backend:
    """One implementation of attention. `lcjax.ops.attention.registry` lists all of them.

    Attributes:
      name: its name in `implementation=` and `--attention`.
      refusal: returns why a call is not supported, and what to use instead; None if it is
        supported.
      run: computes a supported call. The result is differentiable.
      objection: returns why a caller who names no implementation gets another one for a supported
        call; None if there is no reason.
      takes_segments: whether it supports segment ids, which separate the documents of a row.
      needs_gpu: whether it cannot run on a CPU, not even slowly.
      order_of_sums: "fixed" gives the same bits in every run. "on request" does so if XLA is set
        to exclude nondeterministic operations. "any" never guarantees it.
      forward: computes (out, log-sum-exp in the backend's own form) without a derivative. out may
        reuse q's memory. None if the library does not separate its two passes.
      backward: computes `Gradients` from a call, the log-sum-exp that `forward` returned, the
        cotangent of out, and `delta = sum over D of out dout`, float32 [B, H, T]. dq may reuse q's
        memory.
      lse_form: how the log-sum-exps of its passes are read and written; None if `backward` cannot
        compute the gradients for a part of the keys.
      scratch_bytes: bytes that the backward pass allocates without XLA's knowledge, as a function
        of (heads, kv_heads, head_dim, total tokens).
      kernel_pattern: a regular expression that matches the names of its kernels in a compiled
        program; empty if it has none.
    """

    name: str
    refusal: Callable[[AttentionCall], str | None]
    run: Callable[[AttentionCall], Result]
    objection: Callable[[AttentionCall], str | None] = _nothing
    takes_segments: bool = False
    needs_gpu: bool = False
    order_of_sums: Literal["fixed", "on request", "any"] = "fixed"
    forward: Callable[[AttentionCall], tuple[jax.Array, Any]] | None = None
    backward: Callable[[AttentionCall, Any, jax.Array, jax.Array], Gradients] | None = None
    lse_form: LseForm | None = None
    scratch_bytes: Callable[[int, int, int, int], int] = _no_scratch
    kernel_pattern: str = ""

    @property
    def has_passes(self) -> bool:
        """Whether forward and backward pass can be called separately, as tiled layers do."""
        return self.forward is not None and self.backward is not None

    def residual_shapes(self, call: Callable[..., AttentionCall], *arrays: Any) -> tuple[Any, Any]:
        """The shapes of what `forward` returns for `call(*arrays)`, without computing anything."""
        assert self.forward is not None
        forward = self.forward
        return jax.eval_shape(lambda *arrays: forward(call(*arrays)), *arrays)
