"""Which implementation computes a call of attention, and why another one cannot.

| implementation | runs on | largest safe size |
| --- | --- | --- |
| xla | any device | 2^31 - 1 tokens per sequence |
| pallas | GPUs; CPUs (interpreted, slow) | 2^31 - 1 tokens per sequence, arrays of any size |
| mosaic | Hopper GPUs | 2^31 - 1 tokens per sequence |
| cudnn | GPUs | 2^31 - 1 elements per array; larger is untested |
| fa3 | Hopper GPUs, with flash-attn3-jax | 2^31 - 1 elements per array; larger is untested |

"auto" is pallas on a GPU and xla elsewhere. mosaic is used only if the caller names it. cuDNN and
FlashAttention-3 are faster than pallas for the calls that they support. But two runs of their
backward passes need not give the same bits, so they are used only if the caller names them.
"""

from __future__ import annotations

import importlib

import jax

from lcjax.errors import InputError
from lcjax.ops.attention.backend import Backend
from lcjax.ops.attention.call import AttentionCall

BACKENDS: dict[str, str | Backend] = {
    "pallas": "lcjax.pallas.triton.backend",
    "mosaic": "lcjax.pallas.mosaic.backend",
    "cudnn": "lcjax.ops.attention.cudnn",
    "fa3": "lcjax.ops.attention.fa3",
    "xla": "lcjax.ops.attention.xla",
}
"""Each implementation by name: a `Backend`, or a module with a BACKEND, imported at first use."""


def implementations() -> tuple[str, ...]:
    """The names that `lcjax.ops.attention` accepts."""
    return ("auto", *BACKENDS)


def resolve_implementation(implementation: str) -> str:
    """The name of the backend that `implementation` stands for: "auto" depends on the device.

    Raises:
      InputError: the name is unknown.
    """
    if implementation not in implementations():
        raise InputError(f"attention={implementation!r} is unknown; use one of {', '.join(implementations())}")
    if implementation == "auto":
        return "pallas" if jax.default_backend() == "gpu" else "xla"
    return implementation


def backend_of(implementation: str) -> Backend:
    """The backend of a name that `lcjax.ops.attention` accepts. Raises InputError if unknown."""
    found = BACKENDS[resolve_implementation(implementation)]
    return importlib.import_module(found).BACKEND if isinstance(found, str) else found


def choose_backend(implementation: str, call: AttentionCall) -> Backend:
    """The backend that computes a call.

    Raises:
      InputError: the implementation is unknown, or it was named and does not support the call; the
        message has the reason.
    """
    backend = backend_of(implementation)
    reason = backend.refusal(call)
    if reason is not None and implementation == "auto":
        return backend_of("xla")
    if reason is not None:
        raise InputError(f"attention={implementation!r} {reason}")
    return backend


def takes_segments(implementation: str) -> bool:
    """Whether an implementation of attention supports segment ids, which separate documents."""
    return backend_of(implementation).takes_segments
