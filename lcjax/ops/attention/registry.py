"""Which implementation computes an operation, and why another one cannot.

| implementation | runs on | largest safe size |
| --- | --- | --- |
| xla | anything | 2^31 - 1 tokens a sequence |
| pallas | GPUs; CPUs interpreted, slowly | 2^31 - 1 tokens a sequence, arrays of any number of elements |
| cudnn | GPUs | 2^31 - 1 elements an array, beyond which nothing is known |
| fa3 | Hopper GPUs, with flash-attn3-jax | 2^31 - 1 elements an array, beyond which nothing is known |

"auto" is pallas on a GPU and xla elsewhere. cuDNN and FlashAttention-3 are faster where they can do the job, but their backward
passes need not give the same bits twice, so they are used where they are named.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lcjax.errors import InputError
from lcjax.ops.attention.call import AttentionCall

IMPLEMENTATIONS = ("auto", "pallas", "cudnn", "fa3", "xla")

Result = tuple[jax.Array, jax.Array | None]  # (out, lse); None where the call did not ask for an lse


def resolve_implementation(implementation: str) -> str:
    """What computes attention when `implementation` is asked for and the call is one that it supports.

    Raises:
      InputError: a name that is not in IMPLEMENTATIONS.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"attention={implementation!r} is unknown; use one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "auto":
        return "pallas" if jax.default_backend() == "gpu" else "xla"
    return implementation


def takes_segments(implementation: str) -> bool:
    """Whether an implementation of attention can keep the documents of a row apart."""
    return resolve_implementation(implementation) in ("pallas", "xla")


def choose_attention(implementation: str, call: AttentionCall) -> Callable[[AttentionCall], Result]:
    """The function that computes a call.

    Raises:
      InputError: an unknown implementation, or one that was named and does not support the call, with the reason.
    """
    name = resolve_implementation(implementation)
    reason = _REFUSALS[name](call)
    if reason is not None and implementation == "auto":
        name = "xla"
    elif reason is not None:
        raise InputError(f"attention={implementation!r} {reason}")
    return _RUN[name]


def _xla_refusal(call: AttentionCall) -> str | None:
    return None


def _pallas_refusal(call: AttentionCall) -> str | None:
    from lcjax.pallas.triton.tiles import LARGEST_HEAD_DIM

    head_dim, dtype = call.q_BTHD.shape[-1], call.q_BTHD.dtype
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"does not support dtype {dtype}; use float32, bfloat16 or float16, or attention='xla'"
    if head_dim > LARGEST_HEAD_DIM:
        return f"does not support head_dim={head_dim}; use at most {LARGEST_HEAD_DIM}, or attention='xla'"
    return None


def _cudnn_refusal(call: AttentionCall) -> str | None:
    tokens, keys = call.q_BTHD.shape[1], call.k_BSKD.shape[1]
    offset = call.query_offset if call.causal or call.window is not None else 0
    if tokens % 2 or keys % 2:
        return f"does not support {tokens} queries and {keys} keys; pad both to even numbers, or {_MEND}"
    if not (isinstance(offset, int) and offset == 0):
        return f"does not support causal masks and windows with query_offset={offset}; use {_MEND}"
    if call.window is not None and not call.causal:
        return f"does not support window={call.window} without causal; use {_MEND}"
    return _library_refusal(call, largest_head_dim=128)


def _fa3_refusal(call: AttentionCall) -> str | None:
    from lcjax.ops.attention.fa3 import INSTALLED

    if not INSTALLED:
        return f"is not installed; pip install flash-attn3-jax, or use {_MEND}"
    if not call.causal:
        # Version 0.2.3 on an H200, 1,024 tokens without a mask: the output is right, the gradients are off by a factor of 70.
        return f"has wrong gradients without causal; use {_MEND}"
    given, last = call.query_offset, call.k_BSKD.shape[1] - call.q_BTHD.shape[1]
    if not (isinstance(given, int) and given == last):
        return (
            f"does not support query_offset={given}, only that of the last query at the last key, {last}; use {_MEND}"
        )
    return _library_refusal(call, largest_head_dim=128)


_MEND = "attention='pallas' or attention='xla'"


def _library_refusal(call: AttentionCall, *, largest_head_dim: int) -> str | None:
    """What the libraries written in CUDA lack alike."""
    batch, tokens, heads, head_dim = call.q_BTHD.shape
    if call.extras:
        return f"does not support {', '.join(call.extras)}; use {_MEND}"
    if call.q_BTHD.dtype not in (jnp.bfloat16, jnp.float16):
        return f"does not support dtype {call.q_BTHD.dtype}; use bfloat16 or float16, or {_MEND}"
    if head_dim % 8 or head_dim > largest_head_dim:
        return f"does not support head_dim={head_dim}; use a multiple of 8 up to {largest_head_dim}, or {_MEND}"
    if max(call.q_BTHD.size, call.k_BSKD.size) >= 2**31:
        return f"is not known to be safe at {batch * tokens:,} tokens x {heads} heads x {head_dim}; use {_MEND}"
    return None


def _run_xla(call: AttentionCall) -> Result:
    from lcjax.ops.attention.xla import blockwise_attention

    return blockwise_attention(
        call.scale, call.q_BTHD, call.k_BSKD, call.v_BSKD, call.sinks_H, call.mask, call.score_mod
    )


def _run_pallas(call: AttentionCall) -> Result:
    from lcjax.pallas.triton.attention import Options, flash_attention

    options = Options(call.scale)
    return flash_attention(options, call.q_BTHD, call.k_BSKD, call.v_BSKD, call.sinks_H, call.mask, call.score_mod)


def _run_cudnn(call: AttentionCall) -> Result:
    from lcjax.ops.attention.cudnn import cudnn_attention

    return cudnn_attention(
        call.q_BTHD, call.k_BSKD, call.v_BSKD, scale=call.scale, causal=call.causal, window=call.window
    )


def _run_fa3(call: AttentionCall) -> Result:
    from lcjax.ops.attention.fa3 import fa3_attention

    return fa3_attention(call.q_BTHD, call.k_BSKD, call.v_BSKD, scale=call.scale, window=call.window)


_REFUSALS = {"xla": _xla_refusal, "pallas": _pallas_refusal, "cudnn": _cudnn_refusal, "fa3": _fa3_refusal}
_RUN = {"xla": _run_xla, "pallas": _run_pallas, "cudnn": _run_cudnn, "fa3": _run_fa3}
