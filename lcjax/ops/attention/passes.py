"""A layer's attention as calls that the memory engine schedules, on one device or on a mesh.

A caller that computes its own backward pass calls `forward` and `backward`. Before `backward` it
computes `delta = sum over D of out dout`. It may then overwrite out with dout.

A sink is one more term of the softmax's denominator. In the backward pass the probabilities of the
keys follow from the log-sum-exp that includes it, with no other change.

Shapes: B batch, T tokens, H query heads, K key/value heads, D head_dim.
Source: Dao, FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax

from lcjax.config.families import AttentionView
from lcjax.errors import InputError
from lcjax.ops.attention.backend import Backend, Gradients
from lcjax.ops.attention.call import AttentionCall
from lcjax.ops.attention.masks import Mask
from lcjax.ops.attention.registry import backend_of, choose_backend


class Passes(Protocol):
    """A layer's attention: causal, within segments, and limited by `sees`; hashable.

    Arrays are [B, T, H or K, D], sinks float32 [H] or None, segment ids int32 [B, T] or None.
    """

    def run(self, q_BTHD, k_BTKD, v_BTKD, sinks_H, segment_ids_BT, sees: AttentionView, /) -> jax.Array:
        """out [B, T, H, D]; differentiable in q, k, v and sinks.

        Raises:
          InputError: the implementation does not support the call.
        """
        ...

    def forward(self, q_BTHD, k_BTKD, v_BTKD, sinks_H, segment_ids_BT, sees: AttentionView, /) -> tuple[jax.Array, Any]:
        """(out, log-sum-exp in a form of its own). out may reuse q's memory.

        Raises:
          InputError: as `run`.
        """
        ...

    def backward(
        self, q_BTHD, k_BTKD, v_BTKD, sinks_H, segment_ids_BT, sees: AttentionView, lse: Any, dout_BTHD, delta_BHT, /
    ) -> Gradients:
        """(dq, dk, dv, dsinks); delta is float32. dq may reuse q's memory.

        On a mesh, dsinks is the part of a device; the gradient is the sum over all devices.
        """
        ...


@dataclasses.dataclass(frozen=True)
class OnOneDevice:
    """Attention by one backend. `forward` and `backward` need one with separate passes."""

    backend: Backend

    def run(self, q_BTHD, k_BTKD, v_BTKD, sinks_H, segment_ids_BT, sees: AttentionView) -> jax.Array:
        call = layer_call(q_BTHD, k_BTKD, v_BTKD, segment_ids_BT, sees, sinks_H=sinks_H)
        return choose_backend(self.backend.name, call).run(call)[0]

    def forward(self, q_BTHD, k_BTKD, v_BTKD, sinks_H, segment_ids_BT, sees: AttentionView) -> tuple[jax.Array, Any]:
        call = layer_call(q_BTHD, k_BTKD, v_BTKD, segment_ids_BT, sees, sinks_H=sinks_H)
        forward = choose_backend(self.backend.name, call).forward
        assert forward is not None
        return forward(call)

    def backward(
        self, q_BTHD, k_BTKD, v_BTKD, sinks_H, segment_ids_BT, sees: AttentionView, lse: Any, dout_BTHD, delta_BHT
    ) -> Gradients:
        assert self.backend.backward is not None
        call = layer_call(q_BTHD, k_BTKD, v_BTKD, segment_ids_BT, sees, sinks_H=sinks_H)
        return self.backend.backward(call, lse, dout_BTHD, delta_BHT)


def has_passes(implementation: str) -> bool:
    """Whether an implementation has separate forward and backward passes.

    `implementation` is a name that `lcjax.ops.attention` accepts.
    """
    return backend_of(implementation).has_passes


def backend_with_passes(implementation: str) -> Backend:
    """The backend of a name that `lcjax.ops.attention` accepts.

    Raises:
      InputError: the implementation has no separate backward pass.
    """
    backend = backend_of(implementation)
    if not backend.has_passes:
        raise InputError(
            f"attention={implementation!r} does not run in tiles; use attention='pallas' or attention='xla'"
        )
    return backend


def layer_call(
    q_BTHD,
    k_BSKD,
    v_BSKD,
    segment_ids_BT,
    sees: AttentionView,
    *,
    sinks_H: jax.Array | None = None,
    key_segments_BS=None,
    mask: Mask | None = None,
) -> AttentionCall:
    """A layer's attention: causal, within segments, and limited by `sees`.

    It is over whole sequences. For some of the keys, `key_segments_BS` are their segment ids, and
    `mask` takes the place of the causal mask and of the window.
    """
    return AttentionCall.checked(
        q_BTHD,
        k_BSKD,
        v_BSKD,
        causal=mask is None,
        window=sees.window if mask is None else None,
        query_segments_BT=segment_ids_BT,
        key_segments_BS=segment_ids_BT if key_segments_BS is None else key_segments_BS,
        query_offset=None,
        mask_mod=mask,
        score_mod=None,
        soft_cap=sees.soft_cap,
        sinks_H=sinks_H,
        scale=sees.scale,
        return_lse=False,
    )
