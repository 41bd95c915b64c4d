"""Attention over a ring: keys and values travel from device to device until all have met all.

Device r of N along the axis `ring` has pieces r and 2N - 1 - r of the 2N equal pieces of a
sequence, so under a causal mask every device has the same work in a row with one document. Each
step computes attention over the keys that are present while the next ones arrive. Partial results
are joined by their log-sum-exps, in float32. A sink is joined once, before all keys. In the
backward pass the sums of dk and dv travel with their keys. They return to their device after N
steps.

Shapes: B batch, t tokens of a device, N devices, H query heads, K key/value heads, D head_dim.
Source: Liu et al., Ring Attention, arXiv 2310.01889; two pieces per device: Brandon et al., Striped
Attention, arXiv 2311.09431, and Zhu, github.com/zhuzilin/ring-flash-attention (zigzag).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.config.families import AttentionView
from lcjax.config.parallel.mesh import RING
from lcjax.errors import InputError
from lcjax.ops.attention.backend import Backend, Gradients
from lcjax.ops.attention.call import AttentionCall
from lcjax.ops.attention.parallel.pieces import Pieces
from lcjax.ops.attention.passes import layer_call
from lcjax.ops.residuals import ATTENTION_LSE, ATTENTION_OUTPUT, name_residual


class LogSumExp(NamedTuple):
    """As in `lcjax.ops.attention.backend.LseForm`, float32 [B, H, t] each."""

    maximum: jax.Array
    total: jax.Array


class _Keys(NamedTuple):
    """Keys, values and their segment ids, which travel together."""

    k: jax.Array
    v: jax.Array
    ids: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Ring:
    """Attention by a backend over `devices` devices along the axis `ring`.

    Raises:
      InputError: the backend cannot compute attention to some of the keys.
    """

    backend: Backend
    devices: int

    def __post_init__(self):
        if self.backend.lse_form is None:
            raise InputError(
                f"attention={self.backend.name!r} does not run over a ring of {self.devices} devices; "
                "use attention='pallas' or attention='xla', or a ulysses_degree that needs no ring"
            )

    def run(self, q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt, sees: AttentionView) -> jax.Array:
        return _attention(self, sees, q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt)

    def forward(
        self, q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt, sees: AttentionView
    ) -> tuple[jax.Array, LogSumExp]:
        assert self.backend.forward is not None
        assert self.backend.lse_form is not None
        forward, form = self.backend.forward, self.backend.lse_form

        def one_step(step, carry):
            keys, out_BtHD, lse = carry
            following = self._passed_on(keys)
            call = self._call(step, q_BtHD, segment_ids_Bt, keys, sees)
            # The next step needs the queries, so XLA copies them if the kernel overwrites them.
            part_BtHD, own = forward(call)
            joined, weights = _join(lse, LogSumExp(*form.read(call, own)), form.exp)
            before, new = (jnp.swapaxes(weight, 1, 2)[..., None] for weight in weights)
            return following, out_BtHD * before + part_BtHD.astype(jnp.float32) * new, joined

        batch, tokens, heads, _ = q_BtHD.shape
        rows = batch, heads, tokens
        if sinks_H is None:
            lse = LogSumExp(jnp.full(rows, -jnp.inf, jnp.float32), jnp.zeros(rows, jnp.float32))
        else:
            sinks_BHt = jnp.broadcast_to((sinks_H * form.log_e)[None, :, None], rows)
            lse = LogSumExp(sinks_BHt, jnp.ones(rows, jnp.float32))
        start = _Keys(k_BtKD, v_BtKD, segment_ids_Bt), jnp.zeros(q_BtHD.shape, jnp.float32), lse
        _, out_BtHD, lse = lax.fori_loop(0, self.devices, one_step, start)
        return out_BtHD.astype(q_BtHD.dtype), lse

    def backward(
        self, q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt, sees: AttentionView, lse: LogSumExp, dout_BtHD, delta_BHt
    ) -> Gradients:
        assert self.backend.backward is not None
        assert self.backend.lse_form is not None
        backward, form = self.backend.backward, self.backend.lse_form

        def one_step(step, carry):
            keys, dq, dkv = carry
            following = self._passed_on(keys)
            # The sums as the device before left them arrive while this step's kernels run.
            dk, dv = self._passed_on(dkv)
            call = self._call(step, q_BtHD, segment_ids_Bt, keys, sees)
            *gradients, _ = backward(call, form.write(call, *lse), dout_BtHD, delta_BHt)
            parts = [x.astype(jnp.float32) for x in gradients]
            return following, dq + parts[0], (dk + parts[1], dv + parts[2])

        dq, dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (q_BtHD, k_BtKD, v_BtKD))
        start = _Keys(k_BtKD, v_BtKD, segment_ids_Bt), dq, (dk, dv)
        _, dq, dkv = lax.fori_loop(0, self.devices, one_step, start)
        dk, dv = self._passed_on(dkv)
        dsinks_H = None
        if sinks_H is not None:
            weights_BHt = form.exp(sinks_H[None, :, None] * form.log_e - lse.maximum) / lse.total
            dsinks_H = -jnp.sum(weights_BHt * delta_BHt, axis=(0, 2))
        return dq.astype(q_BtHD.dtype), dk.astype(k_BtKD.dtype), dv.astype(v_BtKD.dtype), dsinks_H

    def _call(self, step, q_BtHD, ids_Bt, keys: _Keys, sees: AttentionView) -> AttentionCall:
        """Attention of this device's queries to the keys that are present in a step."""
        here, piece = lax.axis_index(RING), q_BtHD.shape[1] // 2
        source = (here - step) % self.devices
        mask = Pieces(self._starts(here, piece), self._starts(source, piece), piece, piece, sees.window)
        return layer_call(q_BtHD, keys.k, keys.v, ids_Bt, sees, key_segments_BS=keys.ids, mask=mask)

    def _starts(self, device: jax.Array, piece: int) -> jax.Array:
        """Where the two pieces of a device start in the sequence."""
        return jnp.stack([device * piece, (2 * self.devices - 1 - device) * piece]).astype(jnp.int32)

    def _passed_on(self, tree: Any) -> Any:
        return lax.ppermute(tree, RING, [(i, (i + 1) % self.devices) for i in range(self.devices)])


def _join(
    a: LogSumExp, b: LogSumExp, exp: Callable[[jax.Array], jax.Array]
) -> tuple[LogSumExp, tuple[jax.Array, jax.Array]]:
    """(the log-sum-exp over both sets of keys, the weight of each set's normalized output)."""
    maximum = jnp.maximum(a.maximum, b.maximum)
    shift = jnp.where(maximum == -jnp.inf, 0.0, maximum)
    totals = [part.total * exp(part.maximum - shift) for part in (a, b)]
    total = totals[0] + totals[1]
    safe = jnp.where(total == 0, 1.0, total)
    return LogSumExp(maximum, total), (totals[0] / safe, totals[1] / safe)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(ring: Ring, sees: AttentionView, q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt):
    return ring.forward(q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt, sees)[0]


def _attention_forward(ring, sees, q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt):
    out_BtHD, lse = ring.forward(q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt, sees)
    out_BtHD = name_residual(out_BtHD, ATTENTION_OUTPUT)
    lse = LogSumExp(*(name_residual(x, ATTENTION_LSE) for x in lse))
    return out_BtHD, (q_BtHD, k_BtKD, v_BtKD, sinks_H, segment_ids_Bt, out_BtHD, lse)


def _attention_backward(ring, sees, residuals, dout_BtHD):
    *arrays, out_BtHD, lse = residuals
    products = out_BtHD.astype(jnp.float32) * dout_BtHD.astype(jnp.float32)
    delta_BHt = jnp.swapaxes(products.sum(axis=-1), 1, 2)
    return *ring.backward(*arrays, sees, lse, dout_BtHD, delta_BHt), None


_attention.defvjp(_attention_forward, _attention_backward)
