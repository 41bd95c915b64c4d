"""What an implementation of attention is to everybody else: one object, with what it can do and what it needs.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax

from lcjax.ops.attention.call import AttentionCall

Result = tuple[jax.Array, jax.Array | None]
"""(out [B, T, H, D], log-sum-exp float32 [B, H, T]); the second is None where the call did not ask for it."""

Gradients = tuple[jax.Array, jax.Array, jax.Array]
"""(dq, dk, dv) in the dtypes of q, k and v."""


def _no_scratch(heads: int, kv_heads: int, head_dim: int, tokens: int) -> int:
    return 0


@dataclasses.dataclass(frozen=True)
class Backend:
    """One implementation of attention. `lcjax.ops.attention.registry` has them all.

    Attributes:
      name: what `implementation=` and `--attention` call it.
      refusal: why a call cannot be computed, with what to use instead; None where it can.
      run: computes a call that is not refused, differentiably.
      takes_segments: whether it keeps the documents of a row apart.
      order_of_sums: "fixed" gives the same bits in every run; "on request" does where XLA excludes nondeterministic operations;
        "any" never promises it.
      forward: (out, log-sum-exp in the backend's own form) without a derivative; out may take over q's memory. None where the
        library does not separate its two passes.
      backward: (dq, dk, dv) from a call, what `forward` gave as log-sum-exp, out's cotangent, and
        `delta = sum over D of out dout`, float32 [B, H, T]; dq may take over q's memory.
      scratch_bytes: what the backward pass allocates out of XLA's sight, of (heads, kv_heads, head_dim, tokens in all).
      kernel_pattern: a regular expression of the names that its kernels have in a compiled program; empty where it has none.
    """

    name: str
    refusal: Callable[[AttentionCall], str | None]
    run: Callable[[AttentionCall], Result]
    takes_segments: bool = False
    order_of_sums: Literal["fixed", "on request", "any"] = "fixed"
    forward: Callable[[AttentionCall], tuple[jax.Array, Any]] | None = None
    backward: Callable[[AttentionCall, Any, jax.Array, jax.Array], Gradients] | None = None
    scratch_bytes: Callable[[int, int, int, int], int] = _no_scratch
    kernel_pattern: str = ""

    @property
    def has_passes(self) -> bool:
        """Whether forward and backward can be called apart, as layers in tiles do."""
        return self.forward is not None and self.backward is not None

    def residual_shapes(self, call: Callable[..., AttentionCall], *arrays: Any) -> tuple[Any, Any]:
        """The shapes of what `forward` gives for `call(*arrays)`, of which nothing is computed."""
        assert self.forward is not None
        forward = self.forward
        return jax.eval_shape(lambda *arrays: forward(call(*arrays)), *arrays)
